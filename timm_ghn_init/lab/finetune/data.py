"""Images to train, validate and test on: few labels, the same ones for all runs that are to be compared."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...utils.checks import InputError
from ..images import datasets
from ..images.folder import Files, check_images
from ..images.split import Chosen, split_off
from .folder import Folder
from .in_memory import InMemory
from .protocol import Trial

Batches = Iterator[tuple[Tensor, Tensor]]


class Split(Protocol):
    """Images and their classes."""

    def __len__(self) -> int: ...

    def batches(self, batch_size: int, training: bool) -> Batches:
        """Normalised images (N, 3, H, W) and classes (N,), shuffled and augmented for training.

        In training all batches have the same size, up to one image: batch norm has no use for a last one of few. What
        is random comes from the global generators.
        """
        ...


class Data(NamedTuple):
    """A data set, cut into what is trained, validated and tested on."""

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
    """The data of a trial.

    Args:
        trial: `data`, `labels`, `validation`, `data_seed` and `image_size` count.
        data_dir: where CIFAR-10 and Fashion-MNIST are, or are downloaded to. Default: `data`.
        device: where images in memory are kept.
        workers: processes that read images of a folder.
        mean, std: of the values that the model expects, for images of a folder and for those that are resized.

    Raises:
        ValueError: fewer images than are asked for.
        DatasetError: the data are not available: no such folder, no network, a package is missing.
    """
    if trial.data not in _KNOWN:
        parts = _read_folder(trial)
        return Data(
            len(parts[0].classes),
            *(Folder(files, trial.image_size, torch.device(device), workers, mean, std) for files in parts),
        )
    known = _KNOWN[trial.data]
    pool, test, flip = _read(trial.data, str(data_dir or "data"))
    chosen = choose(pool.labels, trial, known)
    statistics = (known.mean, known.std) if trial.image_size == NATIVE else (mean, std)
    m, s = (torch.tensor(v, device=device).view(-1, 1, 1) for v in statistics)

    def in_memory(part: datasets.Split) -> InMemory:
        return InMemory(part.images.to(device), part.labels.to(device), trial.image_size, m, s, _PADDING, flip)

    return Data(
        int(pool.labels.max()) + 1,
        in_memory(pool.take(chosen.train)),
        in_memory(pool.take(chosen.validation)),
        in_memory(pool.take(chosen.rest) if test is None else test),
    )


def choose(classes: Tensor, trial: Trial, known: "_Known") -> Chosen:
    """Images of a data set in memory."""
    n = len(classes)
    shuffle = known.shuffled or trial.data_seed
    order = torch.randperm(n, generator=torch.Generator().manual_seed(trial.data_seed)) if shuffle else torch.arange(n)
    validation = known.validation if trial.validation is None else trial.validation
    chosen = split_off(classes, order, trial.labels, validation, not known.shuffled, trial.data)
    if not known.has_test and len(chosen.rest) == 0:
        raise InputError(
            f"{trial.data}: with {trial.labels or 'all'} labels no images are left to test on; ask for less."
        )
    return chosen


def _read_folder(trial: Trial) -> tuple[Files, Files, Files]:
    """Images of a folder to train, to validate and to test on. All of them can be read."""
    pool, test = datasets.open_folder(trial.data)
    order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(trial.data_seed))
    validation = len(order) // _VALIDATION_SHARE if trial.validation is None else trial.validation
    chosen = split_off(torch.tensor(pool.labels), order, trial.labels, validation, False, trial.data)
    parts = pool.take(chosen.train.tolist()), pool.take(chosen.validation.tolist()), test
    for files in parts:
        check_images(files.paths)
    return parts


@lru_cache(maxsize=2)
def _read(name: str, folder: str) -> tuple[datasets.Split, datasets.Split | None, bool]:
    """Images to choose from, those to test on where they are apart, and whether images may be mirrored."""
    data = datasets.load(name, NATIVE, folder)
    if _KNOWN[name].has_test:
        return data.train, data.test, data.flip
    parts = data.train, data.test
    images, labels = (torch.cat([getattr(part, field) for part in parts]) for field in ("images", "labels"))
    return datasets.Split(images, labels), None, data.flip


class _Known(NamedTuple):
    """How a data set is cut."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    validation: int
    has_test: bool
    shuffled: bool  # or in their own order: the first images of each class, the last ones for validation


NATIVE = 32  # pixels
_PADDING = 4
_VALIDATION_SHARE = 10  # of a folder
_KNOWN = {
    "digits": _Known((0.305,) * 3, (0.376,) * 3, 200, False, True),  # in their own order they come writer by writer
    # images, values and augmentation of the authors' code
    "cifar10": _Known((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 5000, True, False),
    "fashion-mnist": _Known((0.285,) * 3, (0.338,) * 3, 5000, True, False),
    "letters": _Known((0.210,) * 3, (0.377,) * 3, 500, True, True),
}
