"""Batches of images to train on, each by (seed, index): formulas, or a data set with small shifts and mirrorings."""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from .datasets import NAMED, Dataset, load
from .formula import FormulaImages

NAMES = ("formula", *NAMED)  # see `open_images`
SHIFT = 3  # pixels, at most, to each side


class Images(Protocol):
    """Where batches come from; see `FormulaImages`, which is one."""

    @property
    def name(self) -> str: ...

    @property
    def num_classes(self) -> int: ...

    def batch(self, seed: int, index: int, size: int, train: bool = True) -> tuple[np.ndarray, np.ndarray]: ...


def open_images(data: str, num_classes: int = 100, folder: str | Path | None = None) -> Images:
    """Images by name.

    Args:
        data: "formula", or what `datasets.load` takes.
        num_classes: of the formulas; a data set has its own.
        folder: of CIFAR-10 and Fashion-MNIST.

    Raises:
        DatasetError: as `datasets.load`.
    """
    return FormulaImages(num_classes) if data == "formula" else DatasetImages(load(data, 32, folder))


class DatasetImages:
    """Batches of a data set that is in memory: random images, with small shifts and mirrorings when training."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset, self.name, self.num_classes = dataset, dataset.name, len(dataset.classes)
        pixels = dataset.train.images.float().transpose(0, 1).flatten(1) / 255
        self.mean, self.std = (v.view(3, 1, 1) for v in (pixels.mean(1), pixels.std(1)))

    def batch(self, seed: int, index: int, size: int, train: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """As `FormulaImages.batch`. Held-out images come as they are, and one after the other."""
        split = self.dataset.train if train else self.dataset.test
        rng = np.random.default_rng((seed, index))
        chosen = (
            rng.integers(0, len(split), size) if train else np.arange(index * size, (index + 1) * size) % len(split)
        )
        batch = split.take(torch.from_numpy(chosen))
        images = (batch.images.float() / 255 - self.mean) / self.std
        if train:
            images = _shifted(images, rng)
            if self.dataset.flip:
                mirrored = torch.from_numpy(rng.random(size) < 0.5)
                images[mirrored] = images[mirrored].flip(-1)
        return images.numpy(), batch.labels.numpy()


def _shifted(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    padded = F.pad(images, [SHIFT] * 4, mode="replicate")
    h, w = images.shape[2:]
    corners = rng.integers(0, 2 * SHIFT + 1, (len(images), 2)).tolist()
    return torch.stack([image[:, y : y + h, x : x + w] for image, (y, x) in zip(padded, corners, strict=True)])
