"""Statistics of features, and what is done with them: norms and softmaxes that are written out.

A norm is known by its computation: features are divided by statistics of their own (their mean may be taken away
before), the result is multiplied with a vector, and perhaps a vector is added. So a tensor carries a `Moment` from the
first statistic on, until something happens to it that happens in no norm.
"""

import math
from functools import cache
from typing import Any

from torch import Tensor

from ..tape import Tape, tensors_of
from ..values import CONSTANT, Moment, Normed, Over, Value, Vector
from .attention import settle
from .norms import add_norm, add_norm_bias, is_norm_bias

OF_ANYTHING = frozenset((-1,))  # running statistics: of whatever they are applied to


def moment(x: Value) -> Moment:
    """A tensor's moment; where none was noted it is features."""
    return x.norm if isinstance(x.norm, Moment) else Moment(x.origin)


def is_statistic(x: Value) -> bool:
    return isinstance(x.norm, Moment) and x.norm.level > 0


@cache
def running_statistics(size: int) -> Value:
    """A vector that a module keeps in a buffer may be a mean or a variance."""
    return Value(norm=Moment(OF_ANYTHING, 1, Over((size,), (), "bn")))


# -- taking statistics -------------------------------------------------------------------------------------------------


def reduction(tape: Tape, args: Any, kwargs: Any, out: Any, dims: int = 1) -> Value:
    """A statistic over some dimensions: variance, norm, maximum ..."""
    x = tape.value(args[0])
    return reduced(x, args[0], args[dims] if len(args) > dims else None, x)


def extremum(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """The larger or smaller of two tensors, or the largest or smallest value along a dimension."""
    if len(args) < 2 or not isinstance(args[1], Tensor):
        return reduction(tape, args, kwargs, out)
    a, b = (tape.value(t) for t in tensors_of(args, kwargs)[:2])
    value = tape.merge((a, b), "an operand of a maximum or minimum")
    return value if CONSTANT in (a, b) else value._replace(norm=added(a, b))


def reduced(x: Value, tensor: Tensor, dims: Any, value: Value) -> Value:
    """`value`, which is what is known of a reduction of x otherwise, with its moment."""
    if not x.origin or x.attention:
        return value
    n = tensor.dim()
    dims = tuple(d % n for d in dims) if isinstance(dims, (list, tuple)) else () if dims is None else (dims % n,)
    if not dims or len(dims) == n:
        return value._replace(norm=None)
    m = moment(x)
    over = Over(tuple(tensor.shape), dims, "bn" if 0 in dims else "ln")
    return value._replace(norm=Moment(m.of, m.level + 1, over, exponential=m.exponential, scaled=m.gain is not None))


def inner_product(a: Value, b: Value, factor: Tensor, value: Value) -> Value:
    """A product of rows with columns, one of each: of features with themselves it is a statistic."""
    same = moment(a).of == moment(b).of
    return reduced(a, factor, -1 if factor.shape[-1] > 1 else -2, value) if same else value


# -- functions of statistics -------------------------------------------------------------------------------------------


def power(tape: Tape, args: Any, kwargs: Any, out: Tensor, exponent: float | None = None) -> Value:
    """x ** exponent: of a statistic with a negative exponent the inverse."""
    exponent = args[1] if exponent is None else exponent
    if not isinstance(args[0], Tensor):
        return exponential(tape, args[1:], kwargs, out)
    if isinstance(exponent, Tensor):
        return tape.contract("pow", [args[0], exponent])
    x = tape.value(args[0])
    if not isinstance(x.norm, Moment):
        return x._replace(norm=None) if x.norm else x
    return x._replace(norm=x.norm._replace(normalised=None, inverse=x.norm.inverse != (exponent < 0)))


def exponential(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """Attention scores become weights: a softmax that is written out divides by the sum, now or later."""
    x = tape.value(args[0])
    if x.attention == "scores":
        settle(tape, x)
        return x._replace(attention="weights")
    if isinstance(x.norm, Moment) and x.norm.logarithm:
        return Value(x.origin, attention="weights")
    return x._replace(norm=Moment(x.origin, exponential=True) if x.origin and not moment(x).level else None)


def added(a: Value, b: Value) -> Moment | None:
    """The moment of a + b. Features from which their mean is taken away are features still."""
    if a.norm is None and b.norm is None:
        return None
    low, high = sorted((moment(a), moment(b)), key=lambda m: m.level)
    if not _alike(low, high) or low.exponential or high.exponential:
        return None
    return low._replace(
        of=high.of if low.of == OF_ANYTHING else low.of,
        over=high.over or low.over,
        gain=low.gain or high.gain,
        shift=low.shift or high.shift,
    )


def inverted(m: Moment | Normed | None) -> Moment | None:
    """The moment of 1 / x."""
    return m._replace(inverse=not m.inverse, normalised=None) if isinstance(m, Moment) and m.level else None


def _alike(m: Moment, n: Moment) -> bool:
    return m.of == n.of or OF_ANYTHING in (m.of, n.of)


def is_softmax(a: Value, b: Value) -> bool:
    """Whether a / b divides exponential functions by their sum."""
    m, n = moment(a), moment(b)
    return m.exponential and n.exponential and m.of == n.of and (m.level, n.level, n.inverse) == (0, 1, False)


# -- norms -------------------------------------------------------------------------------------------------------------


def multiplied(tape: Tape, a: Value, b: Value, value: Value, division: bool = False) -> Value:
    """`value`, which is what is known of a * b or a / b otherwise, with its moment; or the norm that is complete."""
    if (a.norm is None and b.norm is None) or value.attention:
        return value
    m, n = moment(a), moment(b)
    if not _alike(m, n):
        return value._replace(norm=None)
    if division:  # by a statistic, or by something like features that contains one
        n = n._replace(inverse=not n.inverse, level=max(n.level, 1 if n.over else 0))
    (low, features), (high, _) = sorted(((m, a), (n, b)), key=lambda pair: pair[0].level)
    response = low.response or high.response
    if low.level == high.level or not high.over or (division and low is n):
        both = low._replace(inverse=low.inverse or high.inverse, response=response, normalised=None, gain=None)
        return value._replace(norm=both if low.level else None)
    if not high.inverse:
        return value._replace(norm=low._replace(over=high.over, response=True, gain=low.gain or high.gain))
    # Intermediate results of the norm, e.g. the pooling that is its mean, are part of it.
    value = value._replace(origin=features.origin if low.level or low.of == OF_ANYTHING else low.of)
    gain = high.gain or (None if high.scaled else low.gain)
    ratio = low.level > 0  # of a statistic to its own: features that it is multiplied with are normalised by it
    normed = low._replace(normalised=high.over, response=response or ratio, inverse=ratio, gain=None)
    value = value._replace(activated=value.activated or not ratio, norm=normed)
    return scaled_by(tape, value, gain.value, gain.tensor) if gain else value


def scaled_by(tape: Tape, x: Value, p: Value, used: Tensor, tensor: Tensor | None = None) -> Value:
    """The value of x times a parameter: a norm is complete, or a vector is kept in mind for one.

    Args:
        x: the value of the features, or of a statistic.
        p: the value of the parameter.
        used: the parameter's tensor.
        tensor: the features' tensor, where it is at hand.
    """
    if x.attention or max(used.shape, default=1) == 1:
        return x
    m = moment(x)
    if m.normalised is None:
        return x._replace(norm=m._replace(gain=Vector(p, used)) if m.gain is None else None)
    if not _is_gain(tape, p, used, m.normalised, tensor):
        return x._replace(norm=None)
    return add_norm(tape, m.normalised.primitive, x, p, used, m.response)


def _is_gain(tape: Tape, p: Value, used: Tensor, over: Over, tensor: Tensor | None) -> bool:
    """Whether a vector extends along what was normalised, or along all that was not: then it is the norm's weight."""
    if not used.numel() or used.numel() % tape.parameters[tape.main_leaf(p, used.numel())].numel():
        return False
    if not over.dims:
        return used.numel() == math.prod(over.shape)
    if tensor is not None and tuple(tensor.shape) == over.shape:
        missing = len(over.shape) - used.dim()
        along = any(d >= missing and used.shape[d - missing] > 1 for d in over.dims)
    else:
        sizes = [over.shape[d] for d in over.dims if d]
        merged = tensor is not None and tensor.dim() < len(over.shape) and used.numel() % math.prod(sizes) == 0
        along = merged or any(s > 1 and s in sizes for s in used.shape)
    rest = math.prod(s for d, s in enumerate(over.shape) if d and d not in over.dims)
    return along or used.numel() % rest == 0


def shifted_by(x: Value, p: Value, used: Tensor) -> Value:
    """The value of x plus a parameter that is no bias: a vector is kept in mind for a norm."""
    m = moment(x)
    return x._replace(norm=m._replace(shift=Vector(p, used)) if m.shift is None and m.normalised is None else None)


def completed(tape: Tape, a: Value, b: Value) -> Value | None:
    """a + b where a is a norm's output, or what becomes one, and b belongs to the norm."""
    if isinstance(a.norm, Normed):
        m = moment(b)
        if m.of != a.norm.of or isinstance(b.norm, Normed):
            return None
        if not m.level and not a.norm.response:
            return None
        # The mean, scaled like the features, or the input of a response normalisation; and with it perhaps the bias.
        bias = m.shift
        belongs = bias is not None and is_norm_bias(tape, a, bias.value, bias.tensor)
        return add_norm_bias(tape, a, bias.value, bias.tensor) if bias and belongs else a
    m, n = moment(a), moment(b)
    return a if m.normalised and m.level == 0 and n.level and _alike(m, n) else None
