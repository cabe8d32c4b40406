"""Biases of layers: vectors added to the channels that a layer has just put out."""

from torch import Tensor

from ..reduce import Op
from ..tape import Tape, without_ones
from ..values import Value
from .moments import is_statistic


def is_bias(tape: Tape, x: Value, p: Value, extent: int) -> bool:
    """Whether a vector is added to the channels that a layer has just put out."""
    last = tape.ops[next(iter(x.origin))]
    if (
        is_statistic(x)
        or len(x.origin) > 1
        or last.kind not in ("conv", "sep_conv", "dil_conv")
        or last.channels != extent
    ):
        return False
    # Attention scores still have the projection of q and k as their origin, not only where a layer mixes the heads.
    return x.attention != "scores" or all(tape.owner(n) is tape.owner(last.param) for n in p.leaves)


def add_bias(tape: Tape, x: Value, bias: Value, used: Tensor) -> Value:
    main = tape.main_leaf(bias, used.numel())
    shape = without_ones(tape.node_shape(bias, main, used))
    kernel = None
    if bias.origin:  # of several experts, mixed by the input
        kernel = shape = tuple(tape.parameters[main].shape[1:])
    origin = tape.add(Op("bias", x.origin, main, shape))
    tape.use(bias, len(tape.ops) - 1, "bias", shape, main, kernel=kernel)
    return Value(origin, attention=x.attention, pairs=x.pairs)
