"""Images to train, validate and test on: few labels, the same ones for all runs that are to be compared."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ..images import datasets
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


@dataclass(frozen=True)
class InMemory:
    """Small images as one tensor. Training images are shifted (over a black border) and, if so wished, mirrored.

    Attributes:
        images: (N, 3, H, W), uint8.
        classes: (N,), int64.
        size: height and width to train with; smaller or larger images are resized after augmentation.
        mean, std: of the values, scaled to 0 to 1, per channel.
        padding: largest shift, pixels.
        flip: mirror every other image.
    """

    images: Tensor
    classes: Tensor
    size: int
    mean: Tensor
    std: Tensor
    padding: int
    flip: bool

    def __len__(self) -> int:
        return len(self.classes)

    def batches(self, batch_size: int, training: bool) -> Batches:
        order = torch.randperm(len(self)) if training else torch.arange(len(self))
        for chosen in order.tensor_split(max(1, math.ceil(len(self) / batch_size))):
            chosen = chosen.to(self.images.device)
            x = self.images[chosen]
            x = self._augment(x) if training else x
            x = (x.float() / 255 - self.mean) / self.std
            if x.shape[-1] != self.size:
                x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
            yield x, self.classes[chosen]

    def _augment(self, x: Tensor) -> Tensor:
        """Crop each image at a place of its own from a padded one, as many as there are, in one operation."""
        n, _, height, width = x.shape
        shift = torch.randint(2 * self.padding + 1, (2, n)).to(x.device)
        windows = F.pad(x, [self.padding] * 4).unfold(2, height, 1).unfold(3, width, 1)
        x = windows[torch.arange(n, device=x.device), :, shift[0], shift[1]]
        if self.flip:
            mirrored = torch.rand(n).to(x.device) < 0.5
            x = torch.where(mirrored[:, None, None, None], x.flip(3), x)
        return x


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
        data_dir: where CIFAR-10 is, or is downloaded to. Default: `data` in the working directory.
        device: where images in memory are kept.
        workers: processes that read images of a folder.
        mean, std: of the values that the model expects, for images of a folder and for those that are resized.

    Raises:
        ValueError: fewer images than are asked for.
        DatasetError: the data cannot be had: no such folder, no network, a package is missing.
    """
    if trial.data not in _KNOWN:
        from .folder import load_folder

        return load_folder(trial, torch.device(device), workers, mean, std)
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


class Chosen(NamedTuple):
    """Indices of images."""

    train: Tensor
    validation: Tensor
    rest: Tensor


def few(classes: Tensor, n: int) -> Tensor:
    """Indices of the first n images with as many of each class as of any other, in their order."""
    seen: dict[int, int] = {}
    rank = []
    for c in classes.tolist():
        rank.append((seen.get(c, 0), c))
        seen[c] = seen.get(c, 0) + 1
    return torch.tensor(sorted(sorted(range(len(rank)), key=rank.__getitem__)[:n]), dtype=torch.long)


def split_off(classes: Tensor, order: Tensor, labels: int, validation: int, last: bool, what: str) -> Chosen:
    """Hold out `validation` images, then take `labels` from the others.

    Args:
        classes: (N,) of all images.
        order: (N,) indices, which decide what "first" means.
        labels: training images, balanced; 0 for all.
        validation: images to hold out: balanced from the first on, or, if `last`, simply the last ones.
        last: see `validation`.
        what: name of the data, for messages.

    Raises:
        ValueError: there are not that many.
    """
    if labels + validation > len(order) or validation >= len(order):
        raise ValueError(
            f"{what} has {len(order)} images to choose from: {labels} labels and {validation} for validation are too "
            "many. Ask for less with labels and validation."
        )
    if last:
        held = torch.arange(len(order) - validation, len(order))
    else:
        held = few(classes[order], validation)
    free = order[others(len(order), held)]
    train = few(classes[free], labels or len(free))
    return Chosen(free[train], order[held], free[others(len(free), train)])


def others(n: int, chosen: Tensor) -> Tensor:
    """(n,), True for the indices that were not chosen."""
    mask = torch.ones(n, dtype=torch.bool)
    mask[chosen] = False
    return mask


def choose(classes: Tensor, trial: Trial, known: "_Known") -> Chosen:
    """Images of a data set in memory."""
    n = len(classes)
    shuffle = known.shuffled or trial.data_seed
    order = torch.randperm(n, generator=torch.Generator().manual_seed(trial.data_seed)) if shuffle else torch.arange(n)
    validation = known.validation if trial.validation is None else trial.validation
    chosen = split_off(classes, order, trial.labels, validation, not known.shuffled, trial.data)
    if not known.has_test and len(chosen.rest) == 0:
        raise ValueError(
            f"{trial.data}: with {trial.labels or 'all'} labels no images are left to test on; ask for less."
        )
    return chosen


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
_KNOWN = {
    "digits": _Known((0.305,) * 3, (0.376,) * 3, 200, False, True),  # in their own order they come writer by writer
    # images, values and augmentation of the authors' code
    "cifar10": _Known((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 5000, True, False),
}
