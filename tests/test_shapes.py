"""Shortcuts for shapes on the meta device give what PyTorch gives."""

from typing import Any

import pytest
import torch
from packaging.version import Version

from timm_ghn_init.graph.shapes import _RULES, infer

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


x = meta(2, 8, 5, 5)
last = x.contiguous(memory_format=torch.channels_last)
tokens = meta(2, 10, 8).transpose(1, 2)
half = meta(2, 8, dtype=torch.float16)
CASES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    **{f"gelu {i}": (aten.gelu.default, (t,)) for i, t in enumerate((x, last, tokens, half))},
    "relu": (aten.relu.default, (last,)),
    "silu": (aten.silu.default, (last,)),
    "hardswish": (aten.hardswish.default, (x,)),
    "hardsigmoid": (aten.hardsigmoid.default, (x,)),
    "leaky_relu": (aten.leaky_relu.default, (x, 0.1)),
    "elu": (aten.elu.default, (x, 1.0)),
    "hardtanh": (aten.hardtanh.default, (x, 0.0, 6.0)),
    "mish": (aten.mish.default, (x,)),
    "add": (aten.add.Tensor, (x, x)),
    "add channels last": (aten.add.Tensor, (last, last)),
    "add scalar": (aten.add.Tensor, (x, 1.0)),
    "mul broadcast": (aten.mul.Tensor, (x, meta(2, 8, 1, 1))),
    "mul broadcast other way": (aten.mul.Tensor, (meta(8, 1, 1), x)),
    "sub": (aten.sub.Tensor, (x, x)),
    "mul broadcast to permuted": (aten.mul.Tensor, (meta(8, 1, 1), last)),
    "mul permuted by tokens": (aten.mul.Tensor, (tokens, meta(8, 1))),
    "add in place": (aten.add_.Tensor, (last, x)),
    "sub in place": (aten.sub_.Tensor, (x, 1.0)),
    "mul in place": (aten.mul_.Tensor, (x, meta(8, 1, 1))),
    "relu in place": (aten.relu_.default, (last,)),
    "silu in place": (aten.silu_.default, (x,)),
    "hardswish in place": (aten.hardswish_.default, (half,)),
    "convolution": (aten.convolution.default, (x, meta(6, 8, 3, 2), None, [2, 1], [1, 0], [1, 2], False, [0, 0], 1)),
    "grouped convolution": (
        aten.convolution.default,
        (x, meta(16, 2, 1, 1), meta(16), [1, 1], [0, 0], [1, 1], False, [0, 0], 4),
    ),
    "convolution of channels last": (
        aten.convolution.default,
        (last, meta(6, 8, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    "softmax": (aten._softmax.default, (tokens, -1, False)),
    "safe softmax": (aten._safe_softmax.default, (x, -1)),
    "mm": (aten.mm.default, (meta(3, 4), meta(4, 5))),
    "addmm": (aten.addmm.default, (meta(5), meta(3, 4), meta(5, 4).t())),
    "layer norm": (aten.native_layer_norm.default, (meta(2, 7, 8), [8], meta(8), meta(8), 1e-5)),
    "layer norm over two": (aten.native_layer_norm.default, (meta(2, 7, 8), [7, 8], None, None, 1e-5)),
    "batch norm": (
        aten.native_batch_norm.default,
        (last, meta(8), meta(8), meta(8), meta(8), False, 0.1, 1e-5),
    ),
    "batch norm by the batch's own statistics": (
        aten.native_batch_norm.default,
        (last, meta(8), meta(8), None, None, True, 0.1, 1e-5),
    ),
    "roll": (aten.roll.default, (x, [1, 1], [2, 3])),
    "cat": (aten.cat.default, ([x, meta(2, 3, 5, 5), x], 1)),
    "cat along the first": (aten.cat.default, ([x, x],)),
    "cat along the last, of integers": (aten.cat.default, ([meta(2, 3, dtype=torch.int64)] * 2, -1)),
    "cat of pixels": (aten.cat.default, ([meta(2, 8, 1, 1), meta(2, 4, 1, 1)], 1)),
    "cat of one": (aten.cat.default, ([half], 0)),
}
NOT_PLAIN: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "types differ": (aten.add.Tensor, (meta(2, 8), half)),
    "both broadcast": (aten.mul.Tensor, (meta(3, 1), meta(1, 4))),
    "permuted and broadcast along two": (aten.mul.Tensor, (last, meta(8, 5, 1))),
    "in place, to be broadcast": (aten.add_.Tensor, (meta(8, 1, 1), x)),
    "channels do not fit": (
        aten.convolution.default,
        (x, meta(6, 4, 3, 3), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
    ),
    "transposed convolution": (
        aten.convolution.default,
        (x, meta(8, 6, 2, 2), None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1),
    ),
    "kernel too large": (
        aten.convolution.default,
        (x, meta(6, 8, 7, 7), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    ),
    "sizes do not fit": (aten.mm.default, (meta(3, 4), meta(5, 6))),
    "training": (aten.native_batch_norm.default, (x, meta(8), meta(8), meta(8), meta(8), True, 0.1, 1e-5)),
    "norm of another size": (aten.native_layer_norm.default, (meta(2, 7, 8), [9], None, None, 1e-5)),
    "cat of channels last": (aten.cat.default, ([last, last], 1)),
    "cat of another type": (aten.cat.default, ([meta(2, 8), half], 1)),
    "cat of other sizes": (aten.cat.default, ([meta(2, 8), meta(3, 8)], 1)),
    "cat of another number of dimensions": (aten.cat.default, ([meta(2, 8), meta(0)], 1)),
    "cat along what is not there": (aten.cat.default, ([meta(2, 8)] * 2, 2)),
    "cat of real memory": (aten.cat.default, ([torch.zeros(3)] * 2,)),
    "cat of nothing": (aten.cat.default, ([],)),
    "integers": (aten.mul.Tensor, (meta(3, dtype=torch.int64), 0.5)),
    "real memory": (aten.gelu.default, (torch.zeros(3),)),
}


def described(out: Any) -> Any:
    if isinstance(out, torch.Tensor):
        return tuple(out.shape), out.dtype, out.device, out.stride()
    return [described(t) for t in out]


@pytest.mark.parametrize("case", CASES)
def test_as_pytorch(case: str) -> None:
    func, args = CASES[case]
    inferred, expected = infer(func, args), func(*args)
    if isinstance(expected, tuple):  # of a norm's statistics only the number matters
        assert len(inferred) == len(expected)
        inferred, expected = inferred[0], expected[0]
    if case == "convolution of channels last" and Version(torch.__version__) < Version("2.14"):
        expected = expected.contiguous()  # some older ones keep the order of dimensions in memory on meta
    assert described(inferred) == described(expected)


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_anything_else_is_left_to_pytorch(case: str) -> None:
    func, args = NOT_PLAIN[case]
    assert infer(func, args) is None


def test_every_rule_is_tested() -> None:
    assert set(_RULES) == {func for func, _ in CASES.values()}


X, IMAGES, KERNEL = meta(4, 8), meta(2, 3, 8, 8), meta(5, 3, 3, 3)


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (aten.mm.default, (X, meta(2, 8, 4))),
        (aten.sub.Tensor, (X, True)),
        (aten._softmax.default, (X, 2, False)),
        (aten.roll.default, (X, [1], [2])),
        (aten.relu_.default, (meta(1, 8).expand(4, 8),)),
        (aten.convolution.default, (IMAGES, KERNEL, meta(4), [1, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        (aten.convolution.default, (IMAGES, KERNEL, None, [0, 1], [0, 0], [1, 1], False, [0, 0], 1)),
        (aten.native_layer_norm.default, (X, [8], meta(4), None, 1e-5)),
        (aten.native_batch_norm.default, (X, None, None, None, None, False, 0.1, 1e-5)),
    ],
)
def test_what_pytorch_may_refuse_is_left_to_it(operator: Any, args: Any) -> None:
    assert infer(operator, args) is None
