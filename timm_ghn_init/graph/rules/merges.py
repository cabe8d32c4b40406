"""Several inputs become one: additions, concatenations, multiplications."""

from typing import Any

from torch import Tensor

from ..positions import add_position
from ..reduce import Op
from ..tape import Tape, tensors_of
from ..values import Value, joined, union
from .attention import demote
from .layers import add_bias, is_bias


def join(tape: Tape, args: Any, kwargs: Any, out: Tensor, primitive: str) -> Value:
    """An addition, or a concatenation."""
    tensors = tensors_of(args, kwargs)
    values = [tape.value(t) for t in tensors]
    if primitive == "concat" and not any(v.origin for v in values):
        return joined(tensors, values, args, tape.parameters)
    with_origin = [v for v in values if v.origin]
    if primitive == "concat":
        merged = tape.merge(values, "a token joined to the others")
        if len(with_origin) == 1:
            return with_origin[0]
        return Value(tape.add(Op("concat", merged.origin)), activated=merged.activated)
    if len(with_origin) == 1 and len(values) == 2:
        fixed = 0 if values[1].origin else 1
        return _add_parameter(tape, with_origin[0], values[fixed], tensors[fixed], out)
    if len(with_origin) < 2:
        return tape.merge(values, "a term of a sum")
    attention = {v.attention for v in with_origin} - {""}
    if attention:  # terms of scores or weights: part of the attention, no residual
        for v in values:
            demote(tape, v)
        return union(values)._replace(attention=max(attention))
    merged = union(values)
    return Value(tape.add(Op("sum", merged.origin)), activated=merged.activated)


def _add_parameter(tape: Tape, x: Value, p: Value, used: Tensor, out: Tensor) -> Value:
    """activations + parameter: a bias, a position embedding, or something that is not predicted."""
    if not p.leaves:
        return x
    extents = [s for s in used.shape if s > 1]
    if len(extents) == 1 and is_bias(tape, x, p, extents[0]):
        return add_bias(tape, x, p, used)
    if x.attention == "scores":
        return tape.merge((x, p), "an attention bias or relative-position table")
    if len(extents) >= 2 and (used.dim() < out.dim() or used.shape[0] == 1 or used.stride(0) == 0):
        return add_position(tape, x, p, out)
    what = "table of positions, looked up for each patch," if len(extents) > 1 else "learned scalar or vector"
    return tape.merge((x, p), f"a {what} added to the features")


def multiply(tape: Tape, args: Any, kwargs: Any, out: Tensor, gate: bool = True) -> Value:
    """Scales features. A product of two things that depend on the input may be a gate; else contracted."""
    tensors = tensors_of(args, kwargs)
    values = [tape.value(t) for t in tensors]
    if len(values) < 2 or not all(v.origin for v in values):
        return tape.merge(values, "a learned scale of the features (layer scale, temperature, affine ...)")
    merged = union(values)
    if not gate or values[0].origin == values[1].origin or merged.attention or merged.leaves:
        return merged
    larger = max(range(2), key=lambda i: tensors[i].numel())
    return Value(tape.add(Op("gate", merged.origin, features=values[larger].origin)))
