"""All blocks looked at, and written into their parameters, by one kernel each, in Triton of PyTorch's CUDA builds.

A GPU writes hundreds of parameters in less time than it takes to launch two or three copies for each.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiles import Tile

_CHUNK = 4096  # values that one program writes
_DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_DIMS = tl.constexpr(5)
_ROW = tl.constexpr(4 + 3 * 5)  # columns of the table: see `_row`


@triton.jit
def _write(table, rows, starts, dtype: tl.constexpr, chunk: tl.constexpr):  # type: ignore[no-untyped-def]
    """out[i0, i1, ...] = block[(i0 + offset) mod p0, i1 mod p1, ...] for `chunk` values of one row of the table."""
    program = tl.program_id(0)
    row = table + tl.load(rows + program) * _ROW
    i = tl.load(starts + program) + tl.arange(0, chunk)
    inside = i < tl.load(row + 2)
    values = _values(row, i, inside)
    tl.store(tl.load(row).to(tl.pointer_type(dtype)) + i, values.to(dtype), mask=inside)


@triton.jit
def _look(table, rows, starts, wrong, chunk: tl.constexpr):  # type: ignore[no-untyped-def]
    """Note the row where one of `chunk` values of it is NaN or infinite."""
    program = tl.program_id(0)
    number = tl.load(rows + program)
    row = table + number * _ROW
    i = tl.load(starts + program) + tl.arange(0, chunk)
    values = _values(row, i, i < tl.load(row + 2))
    tl.store(wrong + number + i * 0, 1, mask=~(tl.abs(values) < float("inf")))  # NaN as well


@triton.jit
def _values(row, i, inside):  # type: ignore[no-untyped-def]
    """The values `i` of a row's parameter are, from its block."""
    block = tl.load(row + 1).to(tl.pointer_type(tl.float32))
    rest, source = i, i * 0
    for dim in tl.static_range(4, -1, -1):
        column = row + 4 + 3 * dim
        size = tl.load(column)
        place = rest % size
        if dim == 0:
            place += tl.load(row + 3)
        source += place % tl.load(column + 1) * tl.load(column + 2)
        rest = rest // size
    return tl.load(block + source, mask=inside, other=0.0)


def can_write(tile: Tile, parameter: Tensor) -> bool:
    """Whether the kernel can: a contiguous parameter of up to five dimensions, which is no position embedding."""
    return (
        tile.target.role != "pos_enc"
        and parameter.dtype in _DTYPES
        and parameter.is_contiguous()
        and 0 < parameter.dim() <= _DIMS.value
        and parameter.numel() > 0
    )


def write_all(pairs: Sequence[tuple[Tile, Tensor]]) -> None:
    """`Tile.write_` for many tiles, each with a parameter that `can_write` is true of. All lie on one device."""
    by_dtype = defaultdict[torch.dtype, list[tuple[int, ...]]](list)
    for tile, parameter in pairs:
        by_dtype[parameter.dtype] += _rows(tile, parameter)
    for dtype, table in by_dtype.items():
        arguments = _programs(table, pairs[0][1].device)
        _write[(len(arguments[1]),)](*arguments, dtype=_DTYPES[dtype], chunk=_CHUNK)


def finite(blocks: Sequence[Tensor]) -> list[bool]:
    """Which blocks hold neither NaN nor infinity; all float32 of one to five dimensions, and on one device."""
    arguments = _programs([_row(block, block, 0) for block in blocks], blocks[0].device)
    wrong = torch.zeros(len(blocks), dtype=torch.int32, device=blocks[0].device)
    _look[(len(arguments[1]),)](*arguments, wrong, chunk=_CHUNK)
    return (wrong == 0).tolist()


def _programs(table: Sequence[tuple[int, ...]], device: torch.device) -> list[Tensor]:
    """The table, and for each program its row and its first value."""
    chunks = np.array([-(-row[2] // _CHUNK) for row in table])
    rows = np.repeat(np.arange(len(table)), chunks)
    starts = (np.arange(len(rows)) - np.repeat(np.cumsum(chunks) - chunks, chunks)) * _CHUNK
    return [torch.from_numpy(np.asarray(a, dtype=np.int64)).to(device) for a in (table, rows, starts)]


def _rows(tile: Tile, parameter: Tensor) -> Iterator[tuple[int, ...]]:
    """One for a parameter; of experts that are stored in one tensor, one for each."""
    block, target = tile.block, tile.target
    if target.kernel is None:
        yield _row(block, parameter, target.offset)
    else:
        for expert in parameter.view(-1, *target.kernel):
            yield _row(block, expert, 0)


def _row(block: Tensor, out: Tensor, offset: int) -> tuple[int, ...]:
    """Addresses, number of values, first row of the block; of each dimension size, period and the block's step."""
    missing = _DIMS.value - out.dim()
    sizes, periods, steps = ((*t, *(1,) * missing) for t in (out.shape, block.shape, block.stride()))
    dims: Any = zip(sizes, periods, steps, strict=True)
    return (out.data_ptr(), block.data_ptr(), out.numel(), offset, *(x for dim in dims for x in dim))
