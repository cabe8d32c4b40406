"""Batches of images, with small shifts and mirrorings; for a GHN's training each is a function of (seed, index)."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from .datasets import NAMED, Dataset, load
from .formula import FormulaImages

SHIFT = 3  # pixels, at most, to each side
NAMES = ("formula", *NAMED)  # see `open_images`


def open_images(data: str, folder: str | Path | None = None, num_classes: int = 100) -> "Images | FormulaImages":
    """Batches of a data set, or of images made by formula, at 32 x 32 pixels.

    Args:
        data: "formula", or what `datasets.load` takes.
        folder: as `datasets.load` takes it.
        num_classes: of the formulas; a data set has its own.

    Raises:
        DatasetError: as `datasets.load`.
    """
    return FormulaImages(num_classes) if data == "formula" else Images(load(data, 32, folder))


class Images:
    """Batches of a data set that is in memory.

    Args:
        dataset: see `datasets.load`.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.name, self.num_classes = dataset, dataset.name, len(dataset.classes)
        self.mean, self.std = (values.view(3, 1, 1) for values in _mean_and_std(dataset.train.images))

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
        corners = torch.from_numpy(rng.integers(0, 2 * SHIFT + 1, (size, 2)))
        images = shifted(self._normalised(batch.images), corners, SHIFT, "replicate")
        if self.dataset.flip:
            mirrored = torch.from_numpy(rng.random(size) < 0.5)
            images[mirrored] = images[mirrored].flip(-1)
        return images, batch.labels

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        return (images.float() / 255 - self.mean) / self.std


def _mean_and_std(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each colour over all pixels, in parts: a copy of all images as floats takes memory."""
    total, squares = torch.zeros(2, 3, dtype=torch.float64, device=images.device).unbind()
    for part in images.split(1000):
        pixels = part.double() / 255
        total, squares = total + pixels.sum((0, 2, 3)), squares + pixels.square().sum((0, 2, 3))
    count = images[:, 0].numel()
    mean = total / count
    deviation = (squares / count - mean.square()).clamp_min(0).sqrt()
    deviation = torch.where(deviation < 1e-6, 1.0, deviation)  # a colour that is the same everywhere, such as none
    return mean.float(), deviation.float()


def shifted(images: torch.Tensor, corners: torch.Tensor, padding: int, mode: str = "constant") -> torch.Tensor:
    """Crop each image at a place of its own from a padded one.

    Args:
        images: (N, C, H, W).
        corners: (N, 2), upper left corners of the crops (y, x), 0 to 2 * padding; `padding` is no shift.
        padding: pixels on each side.
        mode: of the padding, as `torch.nn.functional.pad` takes it.
    """
    height, width = images.shape[2:]
    windows = F.pad(images, [padding] * 4, mode=mode).unfold(2, height, 1).unfold(3, width, 1)
    y, x = corners.to(images.device).T
    return windows[torch.arange(len(images), device=images.device), :, y, x]
