"""Which images are trained on, validated on and tested on: few labels, the same ones for equal settings."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...utils.checks import InputError


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8 and their labels (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: Tensor) -> "Split":
        return Split(self.images[index], self.labels[index])


class Chosen(NamedTuple):
    """Indices of images."""

    train: Tensor
    validation: Tensor
    rest: Tensor


def every_fifth(n: int) -> Tensor:
    """(n,), True for the images that a data set without a part to test on gives up for that."""
    return torch.arange(n) % 5 == 4


def mixed(n: int) -> Tensor:
    """An order of n images to test on, always the same.

    Files come class after class, and a batch of one class has statistics that tell nothing.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


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
        raise InputError(
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
