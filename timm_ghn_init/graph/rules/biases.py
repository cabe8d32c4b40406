"""Biases of layers: vectors added to the channels that a layer has just put out."""

import math

from torch import Tensor

from ..modules import is_convolution
from ..reduce import Op
from ..tape import Tape
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


def is_bias_of_blocks(tape: Tape, x: Value, p: Value) -> bool:
    """Whether what is added has a vector for each block of the block-diagonal layer (groups, in, out) right before."""
    last = tape.ops[next(iter(x.origin))]
    if len(x.origin) > 1 or len(p.leaves) > 1 or last.kind != "conv" or last.shape is None or len(last.shape) != 3:
        return False
    if is_convolution(tape.owner(last.param)):
        return False
    extents = tuple(s for s in tape.parameters[next(iter(p.leaves))].shape if s > 1)
    return extents in (last.shape[:2], last.shape[::2])


def add_bias(tape: Tape, x: Value, bias: Value, used: Tensor) -> Value:
    main = tape.main_leaf(bias, used.numel())
    shape: tuple[int, ...] = (math.prod(tape.node_shape(bias, main, used)),)
    kernel = None
    if bias.origin:  # of several experts, mixed by the input
        kernel = shape = tuple(tape.parameters[main].shape[1:])
    origin = tape.add(Op("bias", x.origin, main, shape))
    scale = tape.provenance.factor(used, tape.stand_ins.get(main))
    tape.use(bias, len(tape.ops) - 1, "bias", shape, main, kernel=kernel, scale=scale)
    return Value(origin, attention=x.attention, pairs=x.pairs)
