"""Labelled images in memory: scikit-learn's digits, CIFAR-10, Fashion-MNIST, letters, or a folder of images.

All of them small images by today's standards, held as one uint8 tensor: there is nothing to wait for after the start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.progress import over
from . import DatasetError
from .folder import Files, find_images, read_image
from .idx import idx_file, read_idx
from .split import Split, mixed

_INSTALL = "pip install '.[finetune]' in a checkout"


@dataclass(frozen=True)
class Dataset:
    """Attributes:
    name: "digits", "cifar10", "fashion-mnist", "letters" or the name of the folder.
    train, test: see `Split`. Images to test on come in an order that mixes the classes.
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
        name: "digits", "cifar10", "fashion-mnist", or the path of a folder that holds train/CLASS/*.png and
            test/CLASS/*.png (or validation/, or val/), or CLASS/*.png, of which every fifth image is then held out.
        size: height and width to which images are brought, in pixels.
        folder: where CIFAR-10 and Fashion-MNIST lie or are downloaded to, as torchvision lays them, and where letters
            lie. Default: `data`. Fashion-MNIST is also found where Debian's package dataset-fashion-mnist puts it.

    Raises:
        DatasetError: a package is missing, a download fails, or there are no images.
    """
    if name in NAMED:
        return NAMED[name](size, Path(folder or "data"))
    train, test = open_folder(name)
    held_out = _read(test, size, name)
    held_out = held_out.take(mixed(len(held_out)))
    return Dataset(Path(name).resolve().name, _read(train, size, name), held_out, train.classes, True)


def some_images(name: str, n: int, size: int, folder: str | Path | None = None) -> Split:
    """The first of the images to test on, at any size; of a folder no others are read.

    Args:
        name, folder: as in `load`.
        n: how many, or all if there are fewer.
        size: height and width, in pixels.

    Raises:
        DatasetError: as `load`.
    """
    if name in NAMED:
        test = load(name, folder=folder).test
        few = test.take(torch.arange(min(n, len(test.labels))))
        return Split(_resize(few.images, size), few.labels)
    _, files = open_folder(name)
    return _read(files.take(mixed(len(files))[:n].tolist()), size, name)


def open_folder(name: str) -> tuple[Files, Files]:
    """The files of a folder that has the place of a data set, to train and to test on, see `find_images`.

    Raises:
        DatasetError: there is neither a folder nor a data set of that name, or it holds no images.
    """
    if not Path(name).is_dir():
        raise DatasetError(f"There is no data set or folder {name!r}. Data sets: {', '.join(NAMED)}, or a folder.")
    return find_images(name)


def _digits(size: int, folder: Path) -> Dataset:
    """1797 images of 8 x 8 pixels: the first 1000 to train, 797 to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DatasetError(f"The digits come with scikit-learn: {_INSTALL}.") from error
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
        raise DatasetError(f"CIFAR-10 is read by torchvision: {_INSTALL}.") from error
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


def _fashion_mnist(size: int, folder: Path) -> Dataset:
    """70,000 grey photographs of clothes, 28 x 28 pixels (Zalando Research, arXiv 1708.07747, MIT licence)."""
    raw = folder / "FashionMNIST" / "raw"  # as torchvision lays it
    found = next((place for place in (raw, folder, FASHION_MNIST) if idx_file(place, "train-images")), None)
    if found is None:
        _download_fashion_mnist(folder)
        found = raw
    return Dataset("fashion-mnist", *_read_idx(found, size), _FASHION, True)


def _letters(size: int, folder: Path) -> Dataset:
    """A to J in many fonts, 32 x 32 pixels, in the manner of notMNIST."""
    found = next((place for place in (folder / "letters", folder) if idx_file(place, "train-images")), None)
    if found is None:
        raise DatasetError(
            f"The letters are not in {folder}. They are drawn from the fonts of a machine: "
            f"python benchmarks/letters.py FONTS -o {folder / 'letters'}, in a checkout of timm-ghn-init."
        )
    return Dataset("letters", *_read_idx(found, size), tuple("ABCDEFGHIJ"), False)


def _read_idx(folder: Path, size: int) -> tuple[Split, Split]:
    """Grey images of MNIST's format, to train and to test on."""

    def read(part: str) -> Split:
        pixels, labels = (read_idx(folder, f"{part}-{what}") for what in ("images", "labels"))
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise DatasetError(f"{folder}: the images and labels of {part} do not belong together. Remove them.")
        images = _resize(torch.from_numpy(pixels)[:, None], size).expand(-1, 3, -1, -1).contiguous()
        return Split(images, torch.from_numpy(labels).long())

    return read("train"), read("t10k")


FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _download_fashion_mnist(folder: Path) -> None:
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError as error:
        raise DatasetError(f"Fashion-MNIST is downloaded by torchvision: {_INSTALL}.") from error
    try:
        FashionMNIST(str(folder), download=True)
    except Exception as error:  # of urllib, of the file system
        raise DatasetError(
            f"Fashion-MNIST is not in {folder} and cannot be downloaded ({error}). Copy FashionMNIST/raw there, or "
            "install Debian's package dataset-fashion-mnist."
        ) from error


def _read(files: Files, size: int, folder: str) -> Split:
    from PIL import Image

    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    paths = over(files.paths, f"Reading {folder}", unit="image", stays=True)
    for image, path in zip(images, paths, strict=True):
        pixels = read_image(path).resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2.0)
        image.copy_(torch.from_numpy(np.array(pixels)).permute(2, 0, 1))
    return Split(images, torch.tensor(files.labels))


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    parts = [F.interpolate(p.float(), (size, size), mode="bilinear", antialias=True) for p in images.split(1000)]
    return torch.cat([p.round().clamp(0, 255).to(torch.uint8) for p in parts])


NAMED: dict[str, Callable[[int, Path], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "fashion-mnist": _fashion_mnist,
    "letters": _letters,
}
