"""Values that no random initialisation draws: zeros, priors, gates, tables, filters, identities.

They are told from a small sample of each parameter, and in full only where the sample calls for it. Parameters whose
samples have one shape are looked at together: a network has hundreds of parameters, and few such shapes.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .assign import unwritable
from .exact import exact

ZERO = "set to zero by the constructor"
CONSTANT = "set to a constant by the constructor (a prior or a gate)"
TABLE = "a table, filter or identity: values that no random initialisation draws"

_ALL = 4096  # values up to which a vector is read whole
_BLOCK = 16  # rows and columns that are read of anything else
_STRIDED = 64  # values that are read from all over it


class Suspect(NamedTuple):
    """A parameter that may have been set on purpose."""

    name: str
    role: str  #: as in `InitReport.predicted`
    value: Tensor
    layer: torch.Size | None  #: of a bias: the shape of its layer's weight


class _Samples(NamedTuple):
    """Samples of one shape, in float64 on the CPU."""

    of: list[Suspect]
    blocks: Tensor  #: (parameters, rows, columns) of their beginnings; one row of vectors
    strided: Tensor  #: (parameters, n) from all over them; nothing of vectors
    are_coarse: bool  #: of 16 bits

    def named(self, which: Tensor) -> list[Suspect]:
        return [self.of[i] for i in which.nonzero().flatten().tolist()]

    def are_zero(self) -> Tensor:
        return ~(self.blocks.any(1).any(1) | self.strided.any(1))

    def having(self, role: str) -> Tensor:
        return torch.tensor([suspect.role == role for suspect in self.of])


@exact(torch.device("cpu"))
def unusual(suspects: list[Suspect]) -> tuple[dict[str, str], int]:
    """The parameters whose values are no random draw and not ordinary for their role.

    Returns:
        Name -> reason, and the number of norm weights that are zero.
    """
    readable = [s for s in suspects if s.value.numel() and not s.value.is_meta and unwritable(s.value) is None]
    readable = [s for s in readable if s.value.is_floating_point()]
    found, constants = dict[str, str](), _constant_vectors(readable)
    for samples in _samples([s for s in readable if s.name not in constants]):
        zeros = {s.name: s.role for s in samples.named(samples.are_zero()) if not s.value.any()}
        found |= {name: ZERO for name, role in zeros.items() if role == "weight"}
        for reason, which in (_vectors if samples.strided.shape[1] == 0 else _matrices)(samples).items():
            found |= {s.name: reason for s in samples.named(which) if s.name not in zeros}
    return found, sum(s.role == "norm" and constants.get(s.name) == 0 for s in readable)


def _is_vector(suspect: Suspect) -> bool:
    shape = suspect.value.shape
    return suspect.role in ("bias", "norm") or shape.numel() == max(shape, default=1)


def _constant_vectors(suspects: list[Suspect]) -> dict[str, int]:
    """Name -> value of the vectors that are zero everywhere, and of the norm weights that are one."""
    groups: dict[object, list[Suspect]] = defaultdict(list)
    for suspect in filter(_is_vector, suspects):
        groups[suspect.value.dtype, suspect.value.device].append(suspect)
    constants: dict[str, int] = {}
    for group in groups.values():
        vectors = [s.value.reshape(-1) if s.value.numel() <= _ALL else s.value.reshape(-1)[:_ALL] for s in group]
        joined, ends = torch.cat(vectors).cpu().float(), torch.tensor([v.numel() for v in vectors]).cumsum(0)
        for constant in (0, 1):
            others = joined.ne(constant).cumsum(0)[ends - 1].diff(prepend=torch.tensor([0])).tolist()
            same = [s for s, n in zip(group, others, strict=True) if n == 0]
            constants |= {s.name: constant for s in same if constant == 0 or s.role == "norm"}
    return constants


def _samples(suspects: list[Suspect]) -> Iterator[_Samples]:
    groups: dict[object, list[tuple[Suspect, _Reading]]] = defaultdict(list)
    for suspect in suspects:
        reading = _reading(suspect.value.shape, _is_vector(suspect))
        key = reading.block.size, reading.strided.size, suspect.value.dtype, suspect.value.device
        groups[key].append((suspect, reading))
    for group in groups.values():
        blocks = torch.stack([reading.block.of(suspect.value) for suspect, reading in group])
        strided = torch.stack([reading.strided.of(suspect.value) for suspect, reading in group])
        own = [suspect for suspect, _ in group]
        yield _Samples(own, blocks.cpu().double(), strided.cpu().double(), blocks.element_size() < 4)


class _Part(NamedTuple):
    """Some values of a tensor, by their strides as if that were contiguous."""

    size: tuple[int, ...]
    stride: tuple[int, ...]

    def of(self, value: Tensor) -> Tensor:
        if value.is_contiguous():
            return value.as_strided(self.size, self.stride)
        return value.contiguous().as_strided(self.size, self.stride).clone()  # the whole copy is let go of


class _Reading(NamedTuple):
    """The parts of a parameter that are read, as the fields of `_Samples`."""

    block: _Part
    strided: _Part


@lru_cache(maxsize=1024)
def _reading(shape: torch.Size, is_vector: bool) -> _Reading:
    size = shape.numel()
    if size == max(shape, default=1):
        return _Reading(_Part((1, min(size, _ALL)), (size, 1)), _Part((0,), (1,)))
    outer = next((n for n in shape[:-2] if n > 1), shape[-2])  # (1, tokens, channels) begins with tokens
    block = _Part((min(outer, _BLOCK), min(size // outer, _BLOCK)), (size // outer, 1))
    step = max(1, (size - 1) // (_STRIDED - 1))
    if step > _BLOCK and step % 2 == 0:
        step -= 1  # so that it does not stay in one column
    return _Reading(block, _Part((0 if is_vector else min(size, _STRIDED),), (step,)))


def _matrices(samples: _Samples) -> dict[str, Tensor]:
    """Reason -> of which samples it is true."""
    table = _is_smooth(samples.blocks)
    for part in (samples.blocks.flatten(1), samples.strided):
        table |= _repeats(part, samples.are_coarse) | _has_zeros(part)
    return {TABLE: table}


def _vectors(samples: _Samples) -> dict[str, Tensor]:
    """Reason -> of which samples it is true. The last one counts."""
    x = samples.blocks.flatten(1)
    n, zeros = x.shape[1], _has_zeros(x)
    constant = zeros | _repeats(x, samples.are_coarse)
    for i in (x.eq(0).any(1) & ~zeros).nonzero().flatten().tolist():  # a few zeros do not count
        constant[i] = _repeats(x[i][x[i] != 0][None], samples.are_coarse)[0]
    constant &= torch.tensor(n > 1)
    # PyTorch's own biases are at most this large.
    bounds = [1 / math.sqrt(max(1, math.prod(s.layer[1:]))) if s.layer else math.inf for s in samples.of]
    far = x.abs().amin(1) > (2 * torch.tensor(bounds)).clamp_min(0.1)
    if n >= _BLOCK:
        far |= x.mean(1).abs() > 2 * x.std(1)
    biases = samples.having("bias") & torch.tensor([s.layer is not None for s in samples.of])
    return {CONSTANT: constant | (far & biases), TABLE: _is_regular(x)}


def _repeats(x: Tensor, coarse: bool) -> Tensor:
    """Whether few absolute values are different ones: those of a draw hardly ever repeat, but in 16 bits (`coarse`)."""
    n = x.shape[1]
    rounded = (x.abs() / x.abs().amax(1, keepdim=True)).mul(1e5).round().float()
    ordered = np.sort(rounded.numpy(), axis=1)  # thirty times as fast as `torch.sort`
    different = 1 + torch.from_numpy(np.diff(ordered).astype(bool).sum(1))
    return (different <= max(1, n // (16 if coarse else 2))) & (n > 1)


def _has_zeros(x: Tensor) -> Tensor:
    return 8 * x.eq(0).sum(1) > x.shape[1]


def _is_regular(x: Tensor) -> Tensor:
    """Whether values go up or down in equal steps."""
    if x.shape[1] < 4:
        return torch.zeros(len(x), dtype=torch.bool)
    steps = x.diff(dim=1)
    largest = steps.abs().amax(1)
    return (largest > 0) & (steps.diff(dim=1).abs().amax(1) < 0.05 * largest)


def _is_smooth(blocks: Tensor) -> Tensor:
    """Whether neighbours along rows or columns are nearly the same, as in tables of sines and cosines."""
    smooth = torch.zeros(len(blocks), dtype=torch.bool)
    if blocks[0].numel() < 128:
        return smooth
    z = blocks - blocks.mean((1, 2), keepdim=True)
    power = z.square().mean((1, 2))
    for along in (1, 2):
        if z.shape[along] > 2:
            ahead, behind = z.narrow(along, 1, z.shape[along] - 1), z.narrow(along, 0, z.shape[along] - 1)
            smooth |= (power > 0) & ((ahead * behind).mean((1, 2)) / power > 0.8)
    return smooth
