"""Batches of images to train a GHN on, each a function of (seed, index), with small shifts and mirrorings."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .datasets import Dataset, load

SHIFT = 3  # pixels, at most, to each side


def open_images(data: str, folder: str | Path | None = None) -> "Images":
    """Batches of a data set at 32 x 32 pixels.

    Args:
        data, folder: as `datasets.load` takes them.

    Raises:
        DatasetError: as `datasets.load`.
    """
    return Images(load(data, 32, folder))


class Images:
    """Batches of a data set that is in memory.

    Args:
        dataset: see `datasets.load`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.name, self.num_classes = dataset, dataset.name, len(dataset.classes)
        pixels = dataset.train.images.float().transpose(0, 1).flatten(1) / 255
        deviation = pixels.std(1)
        deviation[deviation == 0] = 1.0  # a colour that is the same everywhere, such as none
        self.mean, self.std = (v.view(3, 1, 1) for v in (pixels.mean(1), deviation))

    def batch(self, seed: int, index: int, size: int, train: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Random images to train on, shifted and mirrored; or held-out images as they are, one after the other.

        Args:
            seed, index: which batch.
            size: images in the batch.
            train: held-out images (False) are never among those for training.

        Returns:
            Images (size, 3, 32, 32), float32, with mean 0 and deviation 1 over the training images; labels (size,).
        """
        split = self.dataset.train if train else self.dataset.test
        if not train:
            batch = split.take(torch.arange(index * size, (index + 1) * size) % len(split))
            return self._normalised(batch.images), batch.labels
        rng = np.random.default_rng((seed, index))
        batch = split.take(torch.from_numpy(rng.integers(0, len(split), size)))
        images = _shifted(self._normalised(batch.images), rng)
        if self.dataset.flip:
            mirrored = torch.from_numpy(rng.random(size) < 0.5)
            images[mirrored] = images[mirrored].flip(-1)
        return images, batch.labels

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - self.mean) / self.std


def _shifted(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    padded = F.pad(images, [SHIFT] * 4, mode="replicate")
    h, w = images.shape[2:]
    corners = rng.integers(0, 2 * SHIFT + 1, (len(images), 2)).tolist()
    return torch.stack([image[:, y : y + h, x : x + w] for image, (y, x) in zip(padded, corners, strict=True)])
