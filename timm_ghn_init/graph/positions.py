"""Learned position embeddings: which of their values are used, where their channels are, and the grid of their rows."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .graph import Place
from .provenance import Lost
from .reduce import NO_OPS, Op
from .tape import Tape, Use
from .values import Value

MAX_TOKENS = 16  # class and register tokens in front of the grid


def add_position(tape: Tape, x: Value, p: Value, used: Tensor, out: Tensor) -> Value:
    """activations + a learned position embedding: a node with no predecessor that enters a sum."""
    added = x.origin
    known = [tape.ops[o] for o in sorted(x.origin)]
    grid = next((op.grid for op in known if op.grid), None)
    channels = known[0].channels
    for name in sorted(p.leaves):
        shape = tuple(tape.parameters[name].shape)
        place = _place(tape, name, used, out, channels, grid)
        if place is None:
            tape.explain(name, _reason(shape))
            continue
        origin = tape.add(Op("pos_enc", NO_OPS, name, node_shape(shape, place)))
        tape.uses.setdefault(name, []).append(Use(len(tape.ops) - 1, "pos_enc", shape, place=place))
        added |= origin
    return Value(tape.add(Op("sum", added))) if added != x.origin else x


def _reason(shape: tuple[int, ...]) -> str:
    if sum(s > 1 for s in shape) < 2:
        return "a token joined to the others"
    return "a table of positions, looked up for each patch, added to the features"


def node_shape(shape: tuple[int, ...], place: Place) -> tuple[int, ...]:
    """The shape that the embedding's node shows: (1, L, C), or with the channels in front of rows and columns."""
    if len(place.axes) == 1 and len(shape) < 4:
        return (1, shape[place.axes[0]], shape[place.channels])
    rest = [s for dim, s in enumerate(shape) if dim != place.channels]
    rest.insert(0 if len(shape) < 4 else 1, shape[place.channels])
    return tuple(rest)


def _place(
    tape: Tape, name: str, used: Tensor, out: Tensor, channels: int | None, grid: tuple[int, int] | None
) -> Place | None:
    """The place of the positions in a parameter, None if there are none."""
    shape = tuple(tape.parameters[name].shape)
    try:
        return place_of(tape.numbers(used, name), shape, out, channels, grid)
    except Lost:
        constant = used.dim() < out.dim() or used.shape[0] == 1 or used.stride(0) == 0
        return by_shape(shape, channels, grid) if constant and sum(s > 1 for s in shape) > 1 else None


def place_of(
    numbers: list[Tensor], shape: tuple[int, ...], out: Tensor, channels: int | None, grid: tuple[int, int] | None
) -> Place | None:
    """The place of the positions, by the elements that are added to the features.

    Args:
        numbers: of the parameter's elements, see `Provenance.numbers`.
        shape: of the parameter.
        out: the features.
        channels: of the features.
        grid: rows and columns that the features have, or had before they became a sequence.
    """
    across = _channel_dim(out, channels)
    first, last, varies = _coordinates(numbers, shape, across, in_front=out.dim() - numbers[0].dim())
    of_channels = [dim for dim, along in enumerate(varies) if across in along]
    axes = [dim for dim, along in enumerate(varies) if along and across not in along]
    if len(of_channels) != 1 or not 0 < len(axes) < 4:
        return None
    axes = sorted(axes, key=lambda dim: min(varies[dim]))[-2:]  # of a video's time, rows and columns
    box = [(a, b - a + 1) for a, b in zip(first, last, strict=True)]
    if len(axes) == 2:
        rows, columns = (box[axis][1] for axis in axes)
        return Place(tuple(axes), of_channels[0], (rows, columns), tuple(box))
    start, count = box[axes[0]]
    spatial = [dim for dim in range(1, out.dim()) if dim != across]
    along = varies[axes[0]] & set(spatial)
    if len(spatial) == 2 and len(along) == 1:  # a table for rows, or one for columns
        rows, columns = (count, 1) if spatial[0] in along else (1, count)
    elif any(out.shape[dim] > count for dim in along) and (len(numbers) > 1 or math.isqrt(count) ** 2 != count):
        rows, columns = count, 1  # repeated along the sequence: one axis of the grid
    else:
        rows, columns = grid_of(count, grid)
    predicted = _predicted(count, rows * columns)
    box[axes[0]] = (start + count - predicted, predicted)
    return Place(tuple(axes), of_channels[0], (rows, columns), tuple(box))


def _coordinates(
    numbers: list[Tensor], shape: tuple[int, ...], across: int, in_front: int
) -> tuple[list[int], list[int], list[set[int]]]:
    """For each dimension of a parameter: first and last index in use, and the features' dimensions it varies along.

    Args:
        numbers: of the parameter's elements, see `Provenance.numbers`.
        shape: of the parameter.
        across: the features' dimension of channels; of the others one channel is enough to look at.
        in_front: how many dimensions the features have more than the numbers.
    """
    looked_at = [part for n in numbers for part in _row_and_column(n, across - in_front)]
    first, last, varies = [0] * len(shape), [0] * len(shape), [set[int]() for _ in shape]
    for dim, extent in enumerate(shape):
        if extent == 1 or not looked_at:
            continue
        found = [n.div(math.prod(shape[dim + 1 :]), rounding_mode="floor").remainder(extent) for n in looked_at]
        lows, highs = ([n.nan_to_num(nan=limit) for n in found] for limit in (torch.inf, -torch.inf))
        first[dim], last[dim] = int(min(n.min() for n in lows)), int(max(n.max() for n in highs))
        for low, high in zip(lows, highs, strict=True):
            varies[dim] |= {d + in_front for d in range(low.dim()) if (high.amax(d) > low.amin(d)).any()}
    return first, last, varies


def _row_and_column(numbers: Tensor, across: int) -> list[Tensor]:
    """From the numbers of elements, those in one channel and those at one position, where there are any."""
    one = [0] * numbers.dim()
    if across < 0 or not numbers.numel():
        return []
    if numbers[tuple(one)].isnan():
        there = numbers.isnan().logical_not_()
        if not there.any():
            return []
        one = there.nonzero()[0].tolist()
    row = numbers
    for dim, index in enumerate(one):
        row = row if dim == across else row.narrow(dim, index, 1)
    return [row, numbers.narrow(across, one[across], 1)]


def _channel_dim(out: Tensor, channels: int | None) -> int:
    """The dimension of the features' channels: a sequence's last, a map's second, unless their number tells."""
    second, last = 1, out.dim() - 1
    usual, other = (last, second) if out.dim() < 4 else (second, last)
    is_other = out.dim() > 2 and out.shape[other] == channels and out.shape[usual] != channels
    return other if is_other else usual


def by_shape(shape: tuple[int, ...], channels: int | None, grid: tuple[int, int] | None) -> Place:
    """The place of the positions in an interpolated table: (..., L, C), (1, H, W, C), (1, C, H, W) or (C, H, W)."""
    n = len(shape)
    whole = [(0, extent) for extent in shape]
    if n < 3 or (n == 3 and shape[0] == 1):
        side = math.isqrt(shape[-2])
        rows, columns = (side, side) if side**2 == shape[-2] else grid_of(shape[-2], grid)
        predicted = _predicted(shape[-2], rows * columns)
        whole[-2] = (shape[-2] - predicted, predicted)
        return Place((n - 2,), n - 1, (rows, columns), tuple(whole))
    if n > 3 and shape[-1] == channels and shape[1] != channels:
        return Place((n - 3, n - 2), n - 1, (shape[-3], shape[-2]), tuple(whole))
    return Place((n - 2, n - 1), n - 3 if n < 5 else 1, (shape[-2], shape[-1]), tuple(whole))


def grid_of(length: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of a sequence: what the features have, if that fits; else a square, else one axis.

    The rest are class and register tokens, which are few. A video has its grid once for each time.
    """
    area = grid[0] * grid[1] if grid is not None else 0
    if grid is not None and 0 <= length - area <= MAX_TOKENS:
        return grid
    side = math.isqrt(length)
    if grid is not None and area > 1 and length % area == 0 and side * side < length:
        return grid
    if length - side * side > MAX_TOKENS or (grid is not None and length in grid):
        return (length, 1)  # positions along one axis
    return (side, side)


def _predicted(length: int, grid: int) -> int:
    """How many positions of a sequence are on the grid, which may repeat."""
    return length if length % grid == 0 else grid


def united(places: Sequence[Place | None]) -> Place | None:
    """The place of a parameter that is used in several: the first, with what others use if its grid repeats in that."""
    first, *others = places
    if first is None:
        return None
    box = list(first.box)
    for other in others:
        if other is not None and (other.axes, other.channels, other.grid) == (first.axes, first.channels, first.grid):
            ends = [(min(a, b), max(a + m, b + n)) for (a, m), (b, n) in zip(box, other.box, strict=True)]
            box = [(start, end - start) for start, end in ends]
    united = first._replace(box=tuple(box))
    counts = [box[axis][1] for axis in first.axes]
    fits = math.prod(counts) % math.prod(first.grid) == 0 if len(counts) == 1 else tuple(counts) == first.grid
    return united if fits else first
