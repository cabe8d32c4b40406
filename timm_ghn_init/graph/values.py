"""What the recording knows of a tensor."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .reduce import NO_OPS

NO_LEAVES: frozenset[str] = frozenset()


class Value(NamedTuple):
    """What is known of a tensor.

    A tensor with leaves and no origin is parameter-only: a transposed weight, a standardised one, q/k/v biases joined
    by `cat`, an indexed bias table. It belongs to its parameters.
    """

    origin: frozenset[int] = NO_OPS  # operations it comes from
    leaves: frozenset[str] = NO_LEAVES  # parameters it was computed from, with no operation in between
    attention: str = ""  # "scores" before the softmax, "weights" after it
    parts: tuple[tuple[str, int], ...] = ()  # parameters joined along dim 0: (name, offset)
    activated: bool = False  # whether a ReLU or the like is among what has been done since


CONSTANT = Value()
FEATURES = Value(frozenset((0,)))  # the model's input


def union(values: Sequence[Value]) -> Value:
    """Values taken together. What is said of attention holds if it is said of all that depend on the input."""
    first = values[0]
    if all(v in (first, CONSTANT) for v in values):
        return first
    attention = {v.attention for v in values if v.origin}
    return Value(
        frozenset().union(*(v.origin for v in values)),
        frozenset().union(*(v.leaves for v in values)),
        attention.pop() if len(attention) == 1 else "",
        activated=any(v.activated for v in values),
    )


def joined(tensors: list[Tensor], values: list[Value], args: Any, parameters: Mapping[str, Tensor]) -> Value:
    """Parameters joined by `cat`: along dim 0 each keeps its place, so that it can be predicted as a part."""
    merged = union(values)
    parts, offset = [], 0
    for tensor, value in zip(tensors, values, strict=True):
        if value.leaves:
            name = next(iter(value.leaves))
            if len(value.leaves) > 1 or parameters[name].shape != tensor.shape:
                return merged
            parts.append((name, offset))
        offset += tensor.shape[0] if tensor.dim() else 1
    along = args[1] if len(args) > 1 else 0
    return merged._replace(parts=tuple(parts)) if along == 0 else merged
