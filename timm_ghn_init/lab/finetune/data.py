"""Images to train, validate and test on: few labels, the same ones for all runs that are compared."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...utils.checks import InputError
from ..images import datasets
from ..images.folder import check_images
from .loaders import Folder, InMemory, Split
from .protocol import Trial


class Data(NamedTuple):
    """A data set, split into images to train, validate and test on."""

    classes: int
    train: Split
    validation: Split
    test: Split


def load(
    trial: Trial,
    data_dir: str | Path | None = None,
    device: torch.device | str = "cpu",
    workers: int = 2,
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[float] = (0.229, 0.224, 0.225),
) -> Data:
    """The data of a trial; `data_dir`, `device` and `workers` are as in `run`.

    The mean and standard deviation that the model expects are used for images of a folder and for resized ones.

    Raises:
        ValueError: fewer images than are asked for.
        DatasetError: the data are not available: no such folder, no network, a package is missing.
    """
    if trial.data not in _KNOWN:
        return _load_folder(trial, torch.device(device), workers, mean, std)
    known = _KNOWN[trial.data]
    pool, test, flip = _read(trial.data, str(data_dir or "data"), trial.folder)
    chosen = choose(pool.labels, trial, known)
    if test is None and len(chosen.rest) == 0:
        raise InputError(
            f"{trial.data}: with {trial.labels or 'all'} labels no images are left to test on; ask for less."
        )
    statistics = (known.mean, known.std) if trial.image_size == _NATIVE else (mean, std)
    m, s = (torch.tensor(v, device=device).view(-1, 1, 1) for v in statistics)
    parts = pool.take(chosen.train), pool.take(chosen.validation), pool.take(chosen.rest) if test is None else test
    return Data(
        int(pool.labels.max()) + 1,
        *(InMemory(p.images.to(device), p.labels.to(device), trial.image_size, m, s, _PADDING, flip) for p in parts),
    )


def _load_folder(trial: Trial, device: torch.device, workers: int, mean: Sequence[float], std: Sequence[float]) -> Data:
    """The data of a trial on a folder of images. All of them can be read."""
    pool, test = datasets.open_folder(trial.data)
    chosen = choose(torch.tensor(pool.labels), trial, _Known(len(pool) // _VALIDATION_SHARE))
    parts = pool.take(chosen.train.tolist()), pool.take(chosen.validation.tolist()), test
    for files in parts:
        check_images(files.paths)
    return Data(len(pool.classes), *(Folder(p, trial.image_size, device, workers, mean, std) for p in parts))


@lru_cache(maxsize=2)
def _read(name: str, folder: str, digest: str) -> tuple[datasets.Split, datasets.Split | None, bool]:
    """Images to choose from, those to test on where they are apart, and whether images may be mirrored.

    The digest of the files is a part of the cache's key.
    """
    data = datasets.load(name, _NATIVE, folder)
    if _KNOWN[name].has_test:
        return data.train, data.test, data.flip
    images, labels = (torch.cat([getattr(part, f) for part in (data.train, data.test)]) for f in ("images", "labels"))
    return datasets.Split(images, labels), None, data.flip


class _Known(NamedTuple):
    """How a data set is split."""

    validation: int
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    has_test: bool = True
    shuffled: bool = True  # or in their own order: the first images of each class, the last ones for validation


_NATIVE = 32  # pixels
_PADDING = 4
_VALIDATION_SHARE = 10  # of a folder
_KNOWN = {
    # shuffled, because the images are sorted by writer
    "digits": _Known(200, (0.305,) * 3, (0.376,) * 3, has_test=False),
    # images, values and augmentation of the authors' code
    "cifar10": _Known(5000, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), shuffled=False),
    "fashion-mnist": _Known(5000, (0.285,) * 3, (0.338,) * 3, shuffled=False),
    "letters": _Known(500, (0.210,) * 3, (0.377,) * 3),
}


# The choice of images


class Chosen(NamedTuple):
    """Indices of images."""

    train: Tensor
    validation: Tensor
    rest: Tensor


def choose(classes: Tensor, trial: Trial, known: _Known) -> Chosen:
    """Hold out images for validation, then take the trial's number of labels from the others.

    Validation images are balanced over the classes, or simply the last ones of a data set that is not shuffled.

    Raises:
        ValueError: there are not that many.
    """
    n, validation = len(classes), known.validation if trial.validation is None else trial.validation
    if trial.labels + validation > n or validation >= n:
        raise InputError(
            f"{trial.data} has {n} images to choose from: {trial.labels} labels and {validation} for validation are "
            "too many. Ask for less with labels and validation."
        )
    shuffle = known.shuffled or trial.data_seed
    order = torch.randperm(n, generator=torch.Generator().manual_seed(trial.data_seed)) if shuffle else torch.arange(n)
    held = few(classes[order], validation) if known.shuffled else torch.arange(n - validation, n)
    free = _without(order, held)
    train = few(classes[free], trial.labels or len(free))
    return Chosen(free[train], order[held], _without(free, train))


def few(classes: Tensor, n: int) -> Tensor:
    """Indices of the first n images, balanced over the classes, in their order."""
    rank = torch.zeros_like(classes)  # how many images of the same class come before
    for c in classes.unique():
        own = classes == c
        rank[own] = torch.arange(int(own.sum()))
    by_rank = sorted(zip(rank.tolist(), classes.tolist(), range(len(classes)), strict=True))
    return torch.tensor(sorted(i for _, _, i in by_rank[:n]), dtype=torch.long)


def _without(values: Tensor, positions: Tensor) -> Tensor:
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[positions] = False
    return values[kept]
