"""Pooling, and means that are pooling."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..reduce import Op
from ..tape import Tape
from ..values import Value
from .merges import unstacked
from .moments import reduced


def pool(tape: Tape, args: Any, kwargs: Any, out: Any, primitive: str) -> Value:
    """A node that carries its kernel."""
    x = tape.value(args[0])
    if not x.origin:
        return x
    kernel = args[1]
    if len(kernel) == 1:  # one extent for all dimensions, of which a 1-D pooling has one
        kernel = [1, kernel[0]] if args[0].dim() == 3 else [kernel[0], kernel[0]]
    return Value(tape.add(Op(primitive, x.origin, shape=(1, 1, *kernel[-2:]))), activated=x.activated)


def global_pool(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Pooling that is global by its own account."""
    x = tape.value(args[0])
    return Value(tape.add(Op("glob_avg", x.origin)), activated=x.activated) if x.origin else x


def mean(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """Global average pooling where it runs over the spatial dimensions, a sum over what was stacked, or a statistic."""
    x = tape.value(args[0])
    dims = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else None
    if not x.origin or not dims or x.attention == "weights":
        return x
    merged = unstacked(tape, x, args[0], out)
    if merged is not None:
        return merged
    spatial = _is_spatial(tape, args[0], x, dims)
    return reduced(x, args[0], dims, Value(tape.add(Op("glob_avg", x.origin)), activated=x.activated) if spatial else x)


def _is_spatial(tape: Tape, x: Tensor, value: Value, dims: Sequence[int]) -> bool:
    """Whether these are all of a tensor's spatial dimensions; the channels that are left tell the layout."""
    n = x.dim()
    reduced = sorted(d % n for d in dims)
    if n == 3:
        channels = {tape.ops[o].channels for o in value.origin}
        left = x.shape[3 - reduced[0]] if len(reduced) == 1 and reduced[0] else None
        return left is not None and (left in channels or (reduced == [1] and channels == {None}))
    return (n == 4 and reduced in ([1, 2], [2, 3])) or (n == 5 and reduced in ([3, 4], [2, 3, 4], [1, 2, 3]))
