"""Labelled images in memory: scikit-learn's digits, CIFAR-10, or a folder of images with one subfolder for each class.

All of them small images by today's standards, held as one uint8 tensor: there is nothing to wait for after the start.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class DatasetError(RuntimeError):
    """A data set cannot be had or read; the message says which and what to do."""


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])


@dataclass(frozen=True)
class Dataset:
    """Attributes:
    name: "digits", "cifar10" or the folder.
    train, test: see `Split`.
    classes: names, in the order of the labels.
    flip: whether an image and its mirror image show the same thing.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    flip: bool


def load(name: str, size: int = 32, folder: str | Path | None = None) -> Dataset:
    """Load a data set.

    Args:
        name: "digits", "cifar10", or the path of a folder that holds train/CLASS/*.png and test/CLASS/*.png (or
            validation/, or val/), or CLASS/*.png, of which every fifth image is then held out.
        size: height and width to which images are brought, in pixels.
        folder: where CIFAR-10 lies or is downloaded to. Default: `data`.

    Raises:
        DatasetError: a package is missing, a download fails, or there are no images.
    """
    if name in _NAMED:
        return _NAMED[name](size, Path(folder or "data"))
    if not Path(name).is_dir():
        raise DatasetError(f"There is no data set or folder {name!r}. Data sets: {', '.join(_NAMED)}, or a folder.")
    return _folder(Path(name), size)


def _digits(size: int, folder: Path) -> Dataset:
    """1797 images of 8 x 8 pixels: the first 1000 to train, 797 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatasetError("The digits come with scikit-learn: pip install scikit-learn.") from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16
    images = F.interpolate(images, (size, size), mode="bilinear").mul(255).round().to(torch.uint8)
    images, targets = images.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels).long()
    classes = tuple(map(str, range(10)))
    return Dataset("digits", Split(images[:1000], targets[:1000]), Split(images[1000:], targets[1000:]), classes, False)


def _cifar10(size: int, folder: Path) -> Dataset:
    try:
        from torchvision.datasets import CIFAR10
    except ImportError as error:
        raise DatasetError("CIFAR-10 is read by torchvision: pip install torchvision.") from error
    try:
        parts = [CIFAR10(str(folder), train=train, download=True) for train in (True, False)]
    except Exception as error:  # of urllib, of the file system, of a damaged file
        raise DatasetError(
            f"CIFAR-10 is not in {folder} and cannot be downloaded ({error}). Copy cifar-10-batches-py there."
        ) from error
    splits = []
    for part in parts:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        splits.append(Split(_resize(images, size), torch.tensor(part.targets)))
    return Dataset("cifar10", splits[0], splits[1], tuple(parts[0].classes), True)


def _folder(folder: Path, size: int) -> Dataset:
    train, held_out = folder / "train", held_out_part(folder)
    if held_out is not None:
        classes = _classes(train)
        return Dataset(str(folder), _read(train, classes, size), _read(held_out, classes, size), classes, True)
    classes = _classes(folder)
    everything = _read(folder, classes, size)
    fifth = torch.arange(len(everything)) % 5 == 4
    return Dataset(str(folder), everything.take(~fifth), everything.take(fifth), classes, True)


def held_out_part(folder: Path) -> Path | None:
    """Of a folder with a part "train", the part to test on, by any of its usual names."""
    parts = [folder / name for name in ("train", "test", "validation", "val")]
    return next((p for p in parts[1:] if p.is_dir()), None) if parts[0].is_dir() else None


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()))


def _read(folder: Path, classes: tuple[str, ...], size: int) -> Split:
    from PIL import Image
    from tqdm import tqdm

    suffixes = Image.registered_extensions()
    files = [
        (p, i) for i, c in enumerate(classes) for p in sorted((folder / c).rglob("*")) if p.suffix.lower() in suffixes
    ]
    if len(classes) < 2 or not files:
        raise DatasetError(f"{folder} holds no images in two or more subfolders, one for each class.")
    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    for image, (path, _) in zip(images, tqdm(files, desc=f"Reading {folder}", delay=2, disable=None), strict=True):
        try:
            with Image.open(path) as opened:
                pixels = opened.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error}. Remove or replace it.") from error
        image.copy_(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))
    return Split(images, torch.tensor([label for _, label in files]))


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    parts = [F.interpolate(p.float(), (size, size), mode="bilinear", antialias=True) for p in images.split(1000)]
    return torch.cat([p.round().clamp(0, 255).to(torch.uint8) for p in parts])


_NAMED: dict[str, Callable[[int, Path], Any]] = {"digits": _digits, "cifar10": _cifar10}
