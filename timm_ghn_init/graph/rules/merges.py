"""Several inputs become one: additions, concatenations, multiplications."""

from typing import Any

from torch import Tensor

from ..adapters import is_delta
from ..positions import add_position
from ..reduce import Op
from ..tape import Tape, tensors_of
from ..values import Moment, Value, joined, union
from .attention import sum_of_scores
from .biases import add_bias, is_bias, is_bias_of_blocks
from .moments import added, completed, inverted, is_softmax, moment, multiplied, reduced, scaled_by, shifted_by
from .norms import add_norm_bias, is_norm_bias

SCALE = "a learned scale of the features (layer scale, temperature, affine ...)"

# -- sums --------------------------------------------------------------------------------------------------------------


def add(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """a + b, or a - b."""
    tensors = tensors_of(args, kwargs)
    if len(tensors) < 2:
        return tape.value(tensors[0])
    a, b = tensors[:2]
    return summed(tape, tape.value(a), tape.value(b), a, b, out)


def interpolate(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """a + weight * (b - a), where the weight may depend on the input, too."""
    tensors = tensors_of(args, kwargs)
    a, b, *weight = (tape.value(t) for t in tensors)
    if weight and weight[0].origin:
        b = scaled(tape, b, weight[0], tensors[1], tensors[2], out)
    elif weight:
        b = tape.merge((b, weight[0]), SCALE)
    return summed(tape, a, b, tensors[0], tensors[1], out)


def add_product(tape: Tape, args: Any, kwargs: Any, out: Tensor, division: bool = False) -> Value:
    """x + a * b, or x + a / b."""
    x, a, b = (tape.value(t) for t in args[:3])
    product = scaled(tape, a, b, args[1], args[2], out, division)
    return summed(tape, x, product, args[0], max(args[1:3], key=Tensor.numel), out)


def summed(tape: Tape, a: Value, b: Value, first: Any = None, second: Any = None, out: Any = None) -> Value:
    """The value of a + b: a residual, a bias, a position embedding, a part of a norm or of attention.

    Args:
        first, second, out: the tensors; they tell nothing where both depend on the input.
    """
    if a.origin and b.origin:
        whole = completed(tape, a, b) or completed(tape, b, a)
        if whole is not None:
            return whole
        if a.attention or b.attention:
            return sum_of_scores(tape, a, b)
        origin = tape.add(Op("sum", a.origin | b.origin))
        return Value(origin, activated=a.activated or b.activated, norm=added(a, b))
    if a.origin:
        return _add_parameter(tape, a, b, second, out)
    if b.origin:
        return _add_parameter(tape, b, a, first, out)
    for weight, delta in ((a, b), (b, a)):
        if is_delta(tape, weight.leaves, delta.leaves):
            tape.deltas.append(delta.leaves)
    return tape.merge((a, b), "a term of a sum")


def _add_parameter(tape: Tape, x: Value, p: Value, used: Tensor, out: Tensor) -> Value:
    """activations + parameter: a bias, a position embedding, or something that is not predicted."""
    if not p.leaves:
        return x
    if is_norm_bias(tape, x, p, used):
        return add_norm_bias(tape, x, p, used)
    extents = [s for s in used.shape if s > 1]
    if len(extents) == 1 and is_bias(tape, x, p, extents[0]):
        return add_bias(tape, x, p, used)
    if is_bias_of_blocks(tape, x, p):
        return add_bias(tape, x, p, used)
    if x.attention:
        return tape.merge((x, p), "an attention bias or relative-position table")
    if len(extents) > 1:
        return add_position(tape, x, p, used, out)
    value = tape.merge((x, p), "a learned scalar or vector added to the features")
    return shifted_by(value._replace(norm=x.norm), p, used)


def total(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """A sum over some dimensions: over what was stacked before, or a statistic."""
    x = tape.value(args[0])
    return unstacked(tape, x, args[0], out) or reduced(x, args[0], args[1] if len(args) > 1 else None, x)


def unstacked(tape: Tape, x: Value, tensor: Tensor, out: Tensor) -> Value | None:
    """The value of a tensor summed to `out`, if it sums the parts of a `concat`."""
    op = tape.ops[min(x.origin)] if len(x.origin) == 1 else None
    stack = tape.ops[min(op.features)] if op is not None and op.kind == "gate" else op
    if op is None or stack is None or stack.part != out.numel() or stack.part == tensor.numel():
        return None
    sources = stack.sources
    if op.kind == "gate":
        sources = tape.add(Op("gate", op.sources - op.features | stack.sources, features=stack.sources))
    return Value(tape.add(Op("sum", sources)), activated=x.activated)


# -- concatenations ----------------------------------------------------------------------------------------------------


def concat(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    tensors = tensors_of(args, kwargs)
    values = [tape.value(t) for t in tensors]
    if not any(v.origin for v in values):
        return joined(tensors, values, args, tape.parameters)
    merged = tape.merge(values, "a token joined to the others")
    with_origin = [v for v in values if v.origin]
    if len(with_origin) == 1:
        return with_origin[0]
    part = tensors[0].numel() if len({t.shape for t in tensors}) == 1 else None
    return Value(tape.add(Op("concat", merged.origin, part=part)), activated=merged.activated)


# -- products ----------------------------------------------------------------------------------------------------------


def multiply(tape: Tape, args: Any, kwargs: Any, out: Tensor, division: bool = False) -> Value:
    """a * b, or a / b."""
    if tape.layer is not None:
        for x, constant in ((args[0], args[1]), (args[1], args[0]))[: 1 if division else 2]:
            number = tape.provenance.number(constant) if isinstance(x, Tensor) and tape.value(x).origin else None
            if number:
                return tape.scale_output(tape.value(x), x, 1 / number if division else number)
    tensors = tensors_of(args, kwargs)
    if len(tensors) < 2:
        return tape.value(tensors[0])
    a, b = tensors[:2]
    return scaled(tape, tape.value(a), tape.value(b), a, b, out, division)


def scaled(tape: Tape, a: Value, b: Value, first: Tensor, second: Tensor, out: Tensor, division: bool = False) -> Value:
    """The value of a * b, or a / b: scaled features, a norm, a weight that is scaled, perhaps a gate."""
    if a.origin and b.origin:
        if division and is_softmax(a, b):
            return Value(a.origin | b.origin, attention="weights")
        if division and b.attention == "weights" and not a.attention:
            return a  # by the sum of the weights that were applied
        value = union((a, b))
        if not (division or a.origin == b.origin or value.attention or value.leaves):
            larger = a if first.numel() >= second.numel() else b
            value = Value(tape.add(Op("gate", value.origin, features=larger.origin)))
        return multiplied(tape, a, b, value, division)
    if a.origin:
        return _scale_by_parameter(tape, a, b, first, second, out, division)
    if b.origin:
        if division:
            b = b._replace(norm=inverted(b.norm))
        return _scale_by_parameter(tape, b, a, second, first, out, False)
    for computed, factor in ((a, b), (b, a)):
        if len(computed.leaves) > 2 and factor.leaves - computed.leaves:
            tape.rescaled |= computed.leaves
    return multiplied(tape, a, b, tape.merge((a, b), ""), division)


def _scale_by_parameter(
    tape: Tape, x: Value, p: Value, features: Tensor, used: Tensor, out: Tensor, division: bool
) -> Value:
    if not p.leaves:
        return multiplied(tape, x, p, x, division) if p.norm else x
    if {tape.ops[index].param for index in x.origin} <= p.leaves and tape.is_free(x.origin):
        return p  # a weight scaled by a function of its own, its spectral norm for instance
    value = tape.merge((x, p), SCALE)
    value = value._replace(norm=x.norm)
    if sum(s > 1 for s in used.shape) > 1 and features.numel() < out.numel() and out.numel() % used.numel() == 0:
        return Value(x.origin, p.leaves)  # the other way round: a kernel that the input scales
    if isinstance(p.norm, Moment) and p.norm.normalised:  # running statistics folded into the weight
        value = value._replace(norm=moment(x)._replace(normalised=p.norm.normalised))
    return value._replace(norm=None) if division else scaled_by(tape, value, p, used, features)
