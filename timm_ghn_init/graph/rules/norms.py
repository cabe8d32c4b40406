"""Layers that normalise."""

import math
from typing import Any

from torch import Tensor

from ..reduce import Op
from ..tape import Tape, without_ones
from ..values import CONSTANT, Moment, Normed, Over, Value
from .attention import among_pairs


def norm(tape: Tape, args: Any, kwargs: Any, out: Any, primitive: str, weight: int, bias: int | None = None) -> Value:
    """A norm by its operator."""
    x = tape.features(args[0])
    gain = tape.value(args[weight]) if len(args) > weight else CONSTANT
    shift = tape.value(args[bias]) if bias is not None and len(args) > bias else CONSTANT
    if not x.origin and x.leaves and any(tape.parameters[n].dim() > 1 for n in tape.siblings(gain)):
        return tape.merge((x, gain, shift), "")  # standardisation of a weight
    if not gain.leaves:
        value = tape.merge((x, shift), "the bias of a norm without a weight")
        over = Moment(x.origin, normalised=_over(tape, args, primitive)) if x.origin else None
        return value._replace(activated=True, norm=over)
    value = add_norm(tape, primitive, x, gain, args[weight])
    value = among_pairs(tape, x, value, args[0].numel() // max(args[weight].numel(), 1))
    return add_norm_bias(tape, value, shift, args[bias]) if shift.leaves else value


def _over(tape: Tape, args: Any, primitive: str) -> Over:
    """The dimensions that an operator normalises over: the last ones, or all but the one of the weight."""
    shape = tuple(args[0].shape)
    if isinstance(args[1], (list, tuple)):
        return Over(shape, tuple(range(len(shape) - len(args[1]), len(shape))), primitive)
    return Over((shape[1] // (tape.batch if shape[0] == 1 else 1),), (), primitive)  # 1: an instance norm


def add_norm(tape: Tape, primitive: str, x: Value, weight: Value, used: Tensor, response: bool = False) -> Value:
    """A norm's node, for its weight."""
    for name in x.leaves:
        tape.explain(name, "goes through a norm, as a token or a query")
    main = tape.main_leaf(weight, used.numel())
    shape = without_ones(tuple(tape.parameters[main].shape))
    origin = tape.add(Op(primitive, x.origin, main, shape, channels=math.prod(shape)))
    tape.use(weight, len(tape.ops) - 1, "norm", shape, main)
    return Value(origin, norm=Normed(len(tape.ops) - 1, x.origin, response))


def is_norm_bias(tape: Tape, x: Value, p: Value, used: Tensor) -> bool:
    """Whether a vector is added to what a norm has just put out, one value for each of its weights."""
    if not isinstance(x.norm, Normed) or x.norm.biased:
        return False
    op = tape.ops[x.norm.op]
    own = p._replace(leaves=p.leaves - {op.param})
    return bool(own.leaves) and tape.parameters[tape.main_leaf(own, used.numel())].numel() == math.prod(op.shape or ())


def add_norm_bias(tape: Tape, x: Value, bias: Value, used: Tensor) -> Value:
    """A norm's bias: it has no node of its own."""
    assert isinstance(x.norm, Normed)
    bias = bias._replace(leaves=bias.leaves - {tape.ops[x.norm.op].param})
    if bias.leaves:  # else it is the weight, used twice
        main = tape.main_leaf(bias, used.numel())
        tape.use(bias, x.norm.op, "bias", tuple(tape.parameters[main].shape), main)
    return x._replace(norm=x.norm._replace(biased=True))
