"""From a decoded block to a whole parameter: normalise the block, then repeat it into place.

A parameter larger than the block is the block repeated along output, then input channels. The scale depends only on
the parameter's shape, so it is applied to the block, and the repetition is one pass over the parameter's memory.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph import Target


@dataclass(frozen=True)
class Tile:
    """A predicted parameter in its small form.

    Attributes:
        block: float32, normalised. (K0, C0, kh, kw) or fewer dimensions for a weight, (K0,) for a norm or bias, in
            the parameter's own layout for a position embedding.
        target: the parameter that it is for.
    """

    block: Tensor
    target: Target

    def write_(self, parameter: Tensor) -> None:
        """Fill a parameter in place, however it lies in memory, casting to its dtype.

        The rows of a position embedding that are not predicted (see `Target.part`) are left alone.
        """
        target = self.target
        if target.role == "pos_enc":
            target.part(parameter).copy_(self.block)
        elif target.kernel is None:
            _repeat(parameter, self.block, target.offset)
        elif parameter.is_contiguous():
            for expert in parameter.view(-1, *target.kernel):
                _repeat(expert, self.block)
        else:  # permuted, say: it need not be possible to look at it as experts
            parameter.copy_(self.full())

    def write_part_(self, part: Tensor, offset: Sequence[int]) -> None:
        """`write_` for a part of the parameter, which alone is in memory.

        Args:
            part: what there is of the parameter, its dimensions those of the whole.
            offset: where in the whole it begins, one number for each dimension.
        """
        if part.numel() == 0:
            return
        target = self.target
        if target.role == "pos_enc":
            self._write_position_(part, offset)
        elif target.kernel is not None:
            self._write_experts_(part, offset)
        else:
            block = self.block
            for dim in range(2, part.dim()):
                if block.shape[dim] > 1:
                    block = block.narrow(dim, offset[dim], part.shape[dim])
            columns = -offset[1] % block.shape[1] if part.dim() > 1 else 0
            _repeat(part, block.roll(columns, 1) if columns else block, target.offset + offset[0])

    def _write_position_(self, part: Tensor, offset: Sequence[int]) -> None:
        box = self.target.place.box if self.target.place is not None else ()
        values = self.block.expand([count for _, count in box])
        for dim, (first, count) in enumerate(box):
            start, stop = max(first, offset[dim]), min(first + count, offset[dim] + part.shape[dim])
            if stop <= start:
                return
            part = part.narrow(dim, start - offset[dim], stop - start)
            values = values.narrow(dim, start - first, stop - start)
        part.copy_(values)

    def _write_experts_(self, part: Tensor, offset: Sequence[int]) -> None:
        """All experts are equal, so one is enough to take parts of."""
        kernel, shape = self.target.kernel or (), self.target.shape
        rows = math.prod(shape) // math.prod(kernel)
        if math.prod(shape[1:]) != math.prod(kernel):  # a vector that is written as a tensor of more dimensions
            whole = self.full()
        else:
            one = self.block.new_empty(kernel)
            _repeat(one, self.block)
            whole = one.reshape(1, *shape[1:]).expand(rows, *shape[1:])
        for dim, (start, length) in enumerate(zip(offset, part.shape, strict=True)):
            whole = whole.narrow(dim, start, length)
        part.copy_(whole)

    def to(self, device: torch.device) -> "Tile":
        return self if self.block.device == device else Tile(self.block.to(device), self.target)

    def full(self) -> Tensor:
        """The parameter as a new float32 tensor; rows that are not predicted (see `write_`) are zero."""
        parameter = torch.zeros(self.target.shape, dtype=self.block.dtype, device=self.block.device)
        self.write_(parameter)
        return parameter

    def view(self) -> Tensor:
        """`full`, without a copy where the block is the whole parameter."""
        whole = self.block.shape == self.target.shape and not self.target.offset
        return self.block if whole else self.full()


def normalise(block: Tensor, shape: tuple[int, ...], role: str) -> Tensor:
    """Scale a raw prediction for a parameter of the given (whole) shape, as the released GHNs were trained."""
    if role == "norm":
        return 2 * torch.sigmoid(block / 2)
    if role == "bias":
        return torch.tanh(block / 5)
    if len(shape) > 2 and shape[0] == 1 and shape[2] >= 11:
        return block  # a position embedding
    kernel_is_wide = len(shape) > 3 and shape[2] < shape[3]
    beta = 1 if len(shape) > 2 and (shape[1] == 1 or kernel_is_wide) else 2
    fan_in = 1
    for extent in shape[1:]:
        fan_in *= extent
    return block * (beta / fan_in) ** 0.5


def _repeat(out: Tensor, block: Tensor, offset: int = 0) -> None:
    """out[k, c] = block[(k + offset) mod K0, c mod C0]: a copy for all whole periods, and one for what is left over."""
    if offset % len(block):
        block = block.roll(-offset, 0)
    if block.shape != out.shape:  # it is read more than once
        block = block.contiguous() if block.dtype == out.dtype else block.to(out.dtype).contiguous()
    for rows, k in _periods(out, 0, len(block)):
        some = block if k == len(block) else block[:k]
        if out.dim() == 1:
            rows.copy_(some)
            continue
        for part, c in _periods(rows, 2, block.shape[1]):
            part.copy_((some if c == block.shape[1] else some[:, :c]).unsqueeze(1))


def _periods(out: Tensor, axis: int, size: int) -> Iterator[tuple[Tensor, int]]:
    """Views with an axis split in two, (number of periods, their length): of all whole periods, and of the rest."""
    before, after = out.shape[:axis], out.shape[axis + 1 :]
    whole, rest = divmod(out.shape[axis], size)
    if whole:
        part = out.narrow(axis, 0, whole * size) if rest else out
        yield part.view(*before, whole, size, *after), size
    if rest:
        yield out.narrow(axis, whole * size, rest).view(*before, 1, rest, *after), rest
