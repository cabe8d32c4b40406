"""Facts about a tensor, from the recording."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .reduce import NO_OPS

NO_LEAVES: frozenset[str] = frozenset()


class Over(NamedTuple):
    """The dimensions that statistics were taken over, of a tensor of this shape; without any, one for each channel."""

    shape: tuple[int, ...]
    dims: tuple[int, ...]
    primitive: str  # of the norm that they belong to: those over the batch, running ones included, are batch norm's


class Moment(NamedTuple):
    """The relation of a tensor to statistics of the features that it comes from, see `rules/moments.py`."""

    of: frozenset[int]  # where the features come from
    level: int = 0  # 0: features, 1: statistics of them, 2: statistics of those
    over: Over | None = None  # what the statistic was taken over, of features the one that was added or multiplied
    inverse: bool = False  # a statistic that divides what it is multiplied with
    response: bool = False  # statistics were multiplied, too
    normalised: Over | None = None  # divided by its own statistics over this
    exponential: bool = False  # the exponential function of features, or a sum of those
    logarithm: bool = False  # the logarithm of a softmax
    scaled: bool = False  # the statistic of something that `gain` was multiplied with
    gain: "Vector | None" = None  # that was multiplied on the way
    shift: "Vector | None" = None  # that was added to a statistic


@dataclass(frozen=True, eq=False)  # the same one or another: tensors are not to be compared
class Vector:
    """A parameter that may turn out to be a norm's: its value and the tensor as which it was used."""

    value: "Value"
    tensor: Tensor


class Normed(NamedTuple):
    """The tensor is what a norm has put out: a vector that is added to it is the norm's bias."""

    op: int
    of: frozenset[int]  # what went into the norm
    response: bool = False  # a global response normalisation, to whose output its input is added
    biased: bool = False


class Value(NamedTuple):
    """Facts about a tensor.

    A tensor with leaves and no origin is parameter-only: a transposed weight, a standardised one, q/k/v biases joined
    by `cat`, an indexed bias table. It belongs to its parameters. With both it is a weight that the input scales, or
    one that it mixes from several.
    """

    origin: frozenset[int] = NO_OPS  # operations it comes from
    leaves: frozenset[str] = NO_LEAVES  # parameters it was computed from, with no operation in between
    attention: str = ""  # "scores" before the softmax, "weights" after it
    parts: tuple[tuple[str, int], ...] = ()  # parameters joined along dim 0: (name, offset)
    activated: bool = False  # whether a ReLU, a division by their length or the like is among what has been done since
    pairs: int = 0  # of attention: queries times keys
    norm: Moment | Normed | None = None
    decided_by: frozenset[int] = NO_OPS  # operations that a mask or an index was computed from; it is no feature yet
    scale: float = 1.0  # a constant that its layer has multiplied the input by


CONSTANT = Value()
FEATURES = Value(frozenset((0,)))  # the model's input


def union(values: Sequence[Value]) -> Value:
    """Values taken together. A fact about attention holds if it holds for all values that depend on the input."""
    first = values[0]
    if all(v in (first, CONSTANT) for v in values):
        return first
    attention = {(v.attention, v.pairs) for v in values if v.origin}
    common, pairs = attention.pop() if len(attention) == 1 else ("", 0)
    return Value(
        frozenset().union(*(v.origin for v in values)),
        frozenset().union(*(v.leaves for v in values)),
        common,
        pairs=pairs,
        activated=any(v.activated for v in values),
        decided_by=frozenset().union(*(v.decided_by for v in values)),
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
