"""Labelled images in memory: digits, CIFAR-10, Fashion-MNIST, letters or a folder, as one uint8 tensor."""

import gzip
import hashlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...utils.progress import over
from . import DatasetError
from .folder import Files, find_images, read_image

_INSTALL = "pip install '.[finetune]' in a checkout"


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
    name: "digits", "cifar10", "fashion-mnist", "letters" or the name of the folder.
    train, test: see `Split`. Test images are in an order that mixes the classes.
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
        name: "digits", "cifar10", "fashion-mnist", "letters", or the path of a folder that holds train/CLASS/*.png and
            test/CLASS/*.png (or validation/, or val/), or CLASS/*.png, of which every fifth image is then held out.
        size: height and width to which images are resized, in pixels.
        folder: of CIFAR-10 and Fashion-MNIST as torchvision stores them, which are downloaded to it, and of the
            letters. Default: `data`. Fashion-MNIST is also found where Debian's dataset-fashion-mnist puts it.

    Raises:
        DatasetError: a package is missing, a download fails, or there are no images.
    """
    if name in NAMED:
        return NAMED[name](size, Path(folder or "data"))
    train, test = open_folder(name)
    held_out = _read(test.take(mixed(len(test))), size, name)
    return Dataset(Path(name).resolve().name, _read(train, size, name), held_out, train.classes, True)


def some_images(name: str, n: int, size: int, folder: str | Path | None = None) -> Split:
    """The first test images, at any size; no others of a folder are read.

    Args:
        name, folder: as in `load`.
        n: how many, or all if there are fewer.
        size: height and width, in pixels.

    Raises:
        DatasetError: as `load`.
    """
    if name in NAMED:
        test = load(name, folder=folder).test
        return Split(_resize(test.images[:n], size), test.labels[:n])
    _, files = open_folder(name)
    return _read(files.take(mixed(len(files))[:n]), size, name)


def open_folder(name: str) -> tuple[Files, Files]:
    """The training and test files of a folder, see `find_images`.

    Raises:
        DatasetError: there is neither a folder nor a data set of that name, or it holds no images.
    """
    if not Path(name).is_dir():
        raise DatasetError(f"There is no data set or folder {name!r}. Data sets: {', '.join(NAMED)}, or a folder.")
    return find_images(name)


def mixed(n: int) -> list[int]:
    """An order of n test images, always the same.

    Files are listed class after class, and a batch of one class has statistics of that class only.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()


# Named data sets


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
    hint = "Copy cifar-10-batches-py there."
    parts = [_by_torchvision("CIFAR10", folder, hint, train=train) for train in (True, False)]
    splits = []
    for part in parts:
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        splits.append(Split(_resize(images, size), torch.tensor(part.targets)))
    return Dataset("cifar10", splits[0], splits[1], tuple(parts[0].classes), True)


def _fashion_mnist(size: int, folder: Path) -> Dataset:
    """70,000 grey photographs of clothes, 28 x 28 pixels (Zalando Research, arXiv 1708.07747, MIT licence)."""
    if _idx_folder("fashion-mnist", folder) is None:
        hint = "Copy FashionMNIST/raw there, or install Debian's package dataset-fashion-mnist."
        _by_torchvision("FashionMNIST", folder, hint)
    found = _idx_folder("fashion-mnist", folder) or folder
    return Dataset("fashion-mnist", *_read_idx(found, size), _FASHION, True)


def _letters(size: int, folder: Path) -> Dataset:
    """A to J in many fonts, 32 x 32 pixels, in the manner of notMNIST."""
    found = _idx_folder("letters", folder)
    if found is None:
        raise DatasetError(
            f"The letters are not in {folder}. They are drawn from the fonts of a machine: "
            f"python benchmarks/letters.py FONTS -o {folder / 'letters'}, in a checkout of timm-ghn-init."
        )
    return Dataset("letters", *_read_idx(found, size), tuple("ABCDEFGHIJ"), False)


def _by_torchvision(name: str, folder: Path, hint: str, **options: Any) -> Any:
    """A data set of torchvision, which downloads it unless its files are there, with the right digests."""
    try:
        make = getattr(import_module("torchvision.datasets"), name)
    except ImportError as error:
        raise DatasetError(f"{name} is read by torchvision: {_INSTALL}.") from error
    try:
        return make(str(folder), download=True, **options)
    except Exception as error:  # of urllib, of the file system, of a damaged file
        raise DatasetError(f"{name} is not in {folder} and cannot be downloaded ({error}). {hint}") from error


NAMED: dict[str, Callable[[int, Path], Dataset]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "fashion-mnist": _fashion_mnist,
    "letters": _letters,
}
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist
_FASHION = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


# MNIST's format: a header with the shape, then bytes (http://yann.lecun.com/exdb/mnist)

_PARTS = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
# sha256 of shapes and contents, in that order: of the published files, and of the letters of benchmarks/results
_USUAL = {
    "fashion-mnist": "eee656c63c1c7a3b7c885d28c97fd74dc039264ce75eae7cb8d991df379ef736",
    "letters": "92ade13afbac05d7227c76b07d4309dc2df73eec1c8375d2d594e0bbbe229085",
}


def digest_of_other_files(name: str, folder: str | Path | None = None) -> str:
    """The sha256 of a named data set's files if they are not the usual ones; "" for these and for missing files.

    Digits are a part of scikit-learn, and torchvision checks the files of CIFAR-10: both are always the usual ones.

    Raises:
        DatasetError: a file is missing or damaged.
    """
    found = _idx_folder(name, Path(folder or "data")) if name in _USUAL else None
    if found is None:
        return ""
    files = [_idx_file(found, part) for part in _PARTS]
    digest = _digest(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))
    return "" if digest == _USUAL[name] else digest


@lru_cache(maxsize=8)
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        array = _idx_array(path)
        digest.update(f"{array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def _idx_folder(name: str, folder: Path) -> Path | None:
    places = {"fashion-mnist": (folder / "FashionMNIST" / "raw", folder, FASHION_MNIST)}
    candidates = places.get(name, (folder / name, folder))
    return next((place for place in candidates if any(place.glob(f"{_PARTS[0]}*"))), None)


def _idx_file(folder: Path, part: str) -> Path:
    files = [path for path in (folder / part, folder / f"{part}.gz") if path.is_file()]
    if not files:
        raise DatasetError(f"{folder} holds no {part}.")
    return files[0]


def _idx_array(path: Path) -> np.ndarray:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            data = file.read()
        axes = data[3]
        shape = np.frombuffer(data, dtype=">u4", count=axes, offset=4).tolist()
        return np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape).copy()
    except (OSError, EOFError, zlib.error, IndexError, ValueError) as error:  # cut off, or not what its header says
        raise DatasetError(f"{path} cannot be read: {error}. Remove it.") from error


def _read_idx(folder: Path, size: int) -> tuple[Split, Split]:
    """Grey images, to train and to test on."""
    arrays = [_idx_array(_idx_file(folder, part)) for part in _PARTS]
    splits = []
    for pixels, labels in (arrays[:2], arrays[2:]):
        if pixels.ndim != 3 or labels.ndim != 1 or len(pixels) != len(labels):
            raise DatasetError(f"{folder}: images and labels do not belong together. Remove them.")
        images = _resize(torch.from_numpy(pixels)[:, None], size).expand(-1, 3, -1, -1).contiguous()
        splits.append(Split(images, torch.from_numpy(labels).long()))
    return splits[0], splits[1]


# Sizes


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
