"""Learned position embeddings: where their channels are, and which grid their rows stand for."""

import math

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
