"""Layers that normalise."""

import math
from typing import Any

from ..reduce import Op
from ..tape import Tape, without_ones
from ..values import CONSTANT, Value


def norm(tape: Tape, args: Any, kwargs: Any, out: Any, primitive: str, weight: int, bias: int | None = None) -> Value:
    """A norm by its operator."""
    x = tape.value(args[0])
    gain = tape.value(args[weight]) if len(args) > weight else CONSTANT
    shift = tape.value(args[bias]) if bias is not None and len(args) > bias else CONSTANT
    if not x.origin and x.leaves and any(tape.parameters[n].dim() > 1 for n in tape.siblings(gain)):
        return tape.merge((x, gain, shift), "")  # standardisation of a weight
    if not gain.leaves:
        return tape.merge((x, shift), "the bias of a norm without a weight")
    return add_norm(tape, primitive, x, gain, shift)


def add_norm(tape: Tape, primitive: str, x: Value, weight: Value, bias: Value) -> Value:
    if not weight.leaves:
        return x
    main = sorted(weight.leaves)[0]
    shape = without_ones(tuple(tape.parameters[main].shape))
    origin = tape.add(Op(primitive, x.origin, main, shape, channels=math.prod(shape)))
    tape.use(weight, len(tape.ops) - 1, "norm", shape, main)
    if bias.leaves:
        name = sorted(bias.leaves)[0]
        tape.use(bias, len(tape.ops) - 1, "bias", tuple(tape.parameters[name].shape), name)
    return Value(origin)
