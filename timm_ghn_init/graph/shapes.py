"""Outputs of the most frequent operators on the meta device, without PyTorch's general rules.

PyTorch works these out in Python, with checks for broadcasting, types and symbolic sizes that take most of the time of
a forward pass on meta. Here only the plain case is answered: float operands of one type whose sizes fit. For anything
else, a mistake in the model's code included, `infer` gives None, and PyTorch is asked.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def infer(func: Any, args: Any) -> Any:
    """The result of `func(*args)` on the meta device, or None if that is not a plain case."""
    rule = _RULES.get(func)
    if rule is None:
        return None
    x = args[0][0] if isinstance(args[0], (list, tuple)) and args[0] else args[0]
    return rule(*args) if isinstance(x, Tensor) and x.is_meta else None


def _new(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device)  # a third of the time of `x.new_empty(shape)`


def _like(x: Tensor) -> Tensor:
    """`torch.empty_like(x)`, which takes ten times as long."""
    if x.is_contiguous():
        return _new(x, x.shape)
    extent = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size == 1 or stride != extent:
            return torch.empty_like(x)
        extent *= size
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)  # permuted, without gaps


def _elementwise(x: Tensor, *others: Any) -> Tensor | None:
    return _like(x) if x.is_floating_point() else None


def _elementwise_(x: Tensor, *others: Any) -> Tensor | None:
    return x if x.is_floating_point() and 0 not in x.stride() else None  # expanded memory is refused


def _contiguous(x: Tensor, *others: Any) -> Tensor | None:
    return _new(x, x.shape) if x.is_floating_point() else None


def _softmax(x: Tensor, dim: int, to_float: bool = False) -> Tensor | None:
    return _contiguous(x) if not to_float and -x.dim() <= dim < x.dim() else None


def _binary(x: Tensor, y: Any) -> Tensor | None:
    """x and y of the same shape, or one of them broadcast to the other's."""
    if not x.is_floating_point():
        return None
    if type(y) in (int, float):  # a bool cannot be subtracted
        return _like(x)
    if not isinstance(y, Tensor) or not _of_a_kind(x, y):
        return None
    if x.shape == y.shape:
        return _like(x) if x.stride() == y.stride() else None
    for whole, part in ((x, y), (y, x)):
        # A tensor that varies along one dimension only does not decide the memory layout of the result.
        if _broadcasts(part.shape, whole.shape) and (
            whole.is_contiguous() or max(part.shape, default=1) == part.numel()
        ):
            return _like(whole)
    return None


def _binary_(x: Tensor, y: Any) -> Tensor | None:
    """The same in place: x stays what it is."""
    if isinstance(y, Tensor) and not (_of_a_kind(x, y) and _broadcasts(y.shape, x.shape)):
        return None
    fits = isinstance(y, Tensor) or type(y) in (int, float)
    return x if fits and x.is_floating_point() and 0 not in x.stride() else None


def _broadcasts(part: torch.Size, whole: torch.Size) -> bool:
    tail = whole[len(whole) - len(part) :]
    return len(part) <= len(whole) and all(p in (1, w) for p, w in zip(part, tail, strict=True))


def _of_a_kind(x: Tensor, *others: Tensor | None) -> bool:
    """Whether all are real, on the meta device as x is, and of one type."""
    dtype = x.dtype
    return x.is_floating_point() and all(t is None or (t.is_meta and t.dtype is dtype) for t in others)


def _mm(a: Tensor, b: Tensor) -> Tensor | None:
    if not (a.dim() == 2 == b.dim() and _of_a_kind(a, b)) or a.shape[1] != b.shape[0]:
        return None
    return _new(a, (a.shape[0], b.shape[1]))


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Tensor | None:
    out = _mm(a, b)
    return out if out is not None and _of_a_kind(a, bias) and _broadcasts(bias.shape, out.shape) else None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor | None:
    fits = x.dim() == 4 == weight.dim() and x.shape[1] == weight.shape[1] * groups and weight.shape[0] % groups == 0
    if (
        not fits
        or transposed
        or not _of_a_kind(x, weight, bias)
        or not len(stride) == len(padding) == len(dilation) == 2
    ):
        return None
    if min(*stride, *dilation) < 1 or min(padding) < 0 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    spatial = zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    size = [(n + 2 * pad - dil * (k - 1) - 1) // step + 1 for n, k, step, pad, dil in spatial]
    return _new(x, (x.shape[0], weight.shape[0], *size)) if min(size) > 0 else None


def _layer_norm(x: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    whole = list(shape)
    if not whole or not _of_a_kind(x, weight, bias) or list(x.shape[-len(whole) :]) != whole:
        return None
    if any(p is not None and list(p.shape) != whole for p in (weight, bias)):
        return None
    statistics = _new(x, (*x.shape[: -len(shape)], *(1 for _ in shape)))
    return _contiguous(x), statistics, _like(statistics)


def _batch_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    *_: Any,
) -> Any:
    if training == (mean is not None) or (mean is None) != (var is None) or x.dim() < 2:
        return None
    vectors, size = (weight, bias, mean, var), (x.shape[1],)
    if not _of_a_kind(x, *vectors) or not all(p is None or p.shape == size for p in vectors):
        return None
    statistics = _new(x, size if training else (0,))
    return _like(x), statistics, statistics


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor | None:
    fits = len(shifts) == len(dims) and all(-x.dim() <= dim < x.dim() for dim in dims)
    return _new(x, x.shape) if fits else None


def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    x = tensors[0]
    kind = x.dtype, x.device, x.dim()
    if not -x.dim() <= dim < x.dim() or any((t.dtype, t.device, t.dim()) != kind for t in tensors):
        return None
    shapes = [list(t.shape) for t in tensors]
    length = sum(shape.pop(dim) for shape in shapes)
    if not all(shape == shapes[0] and t.is_contiguous() for shape, t in zip(shapes, tensors, strict=True)):
        return None
    whole = list(x.shape)
    whole[dim] = length
    return _new(x, whole)


# By name, since not every PyTorch has them all.
_NAMES: tuple[tuple[str, Callable[..., Any]], ...] = (
    ("relu gelu silu hardswish hardsigmoid leaky_relu elu hardtanh mish", _elementwise),
    ("relu_ silu_ hardswish_", _elementwise_),
    ("add.Tensor mul.Tensor sub.Tensor", _binary),
    ("add_.Tensor mul_.Tensor sub_.Tensor", _binary_),
    ("_softmax _safe_softmax", _softmax),
    ("convolution", _convolution),
    ("mm", _mm),
    ("addmm", _addmm),
    ("native_layer_norm", _layer_norm),
    ("native_batch_norm", _batch_norm),
    ("roll", _roll),
    ("cat", _cat),
)


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet, None), overload or "default", None)


_RULES = {func: rule for names, rule in _NAMES for name in names.split() if (func := _operator(name)) is not None}
