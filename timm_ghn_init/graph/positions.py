"""Learned position embeddings: where their channels are, and which grid their rows stand for."""

import math

from torch import Tensor

from .reduce import NO_OPS, Op
from .tape import Tape, Use
from .values import Value

MAX_TOKENS = 16  # class and register tokens in front of the grid


def layout_of(shape: tuple[int, ...], channels: int | None) -> str:
    """Where the channels of a position embedding are: (..., L, C), (1, H, W, C) or (1, C, H, W)."""
    if len(shape) < 4:
        return "tokens" if len(shape) < 3 or shape[0] == 1 else "chw"
    return "hwc" if shape[-1] == channels and shape[1] != channels else "chw"


def node_shape(shape: tuple[int, ...], channels: int | None) -> tuple[int, ...]:
    layout = layout_of(shape, channels)
    if layout == "tokens":
        return (1, *shape[-2:])
    return (shape[0], shape[3], shape[1], shape[2]) if layout == "hwc" else shape


def grid_of(shape: tuple[int, ...], layout: str, grid: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns: what the features it is added to have, if they fit; else a square, else one axis.

    What is left over are class and register tokens, of which there are few.
    """
    if layout == "hwc":
        return (shape[1], shape[2])
    if layout == "chw":
        return (shape[-2], shape[-1])
    length = shape[-2]
    if grid is not None and 0 <= length - grid[0] * grid[1] <= MAX_TOKENS:
        return grid
    side = math.isqrt(length)
    if length - side * side > MAX_TOKENS or (grid is not None and length in grid):
        return (length, 1)  # positions along one axis
    return (side, side)


def add_position(tape: Tape, x: Value, p: Value, out: Tensor) -> Value:
    """activations + a learned position embedding: a node with no predecessor that enters a sum."""
    added = x.origin
    for name in sorted(p.leaves):
        shape = tuple(tape.parameters[name].shape)
        if sum(s > 1 for s in shape) < 2:
            tape.explain(name, "a token joined to the others")
            continue
        grid = next((tape.ops[o].grid for o in sorted(x.origin) if tape.ops[o].grid), None)
        channels = next((tape.ops[o].channels for o in sorted(x.origin)), None)
        origin = tape.add(Op("pos_enc", NO_OPS, name, shape, channels=channels, grid=grid))
        tape.uses.setdefault(name, []).append(Use(len(tape.ops) - 1, "pos_enc", shape))
        added |= origin
    return Value(tape.add(Op("sum", added))) if added != x.origin else x
