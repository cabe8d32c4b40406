"""The table: which operator becomes which primitive.

An operator that is not listed is contracted: its inputs are joined to whatever consumes its output. What PyTorch or
timm grows next is one line here. A rule is given the tape, the operator's arguments and its output, and says what is
known of the output; positions of arguments that differ between operators stand in the row.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from .rules.attention import attention, softmax
from .rules.layers import convolution, product
from .rules.lookups import lookup
from .rules.merges import join, multiply
from .rules.norms import norm
from .rules.pooling import global_pool, mean, pool
from .tape import Tape, tensors_of
from .values import CONSTANT, Value

Rule = Callable[..., Value]


def activation(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """What has been through it are features, no logits."""
    return tape.merge([tape.value(t) for t in tensors_of(args, kwargs)], "the slope of an activation")._replace(
        activated=True
    )


def constant(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Takes a shape, or a type, from its argument and no values."""
    return CONSTANT


OPERATORS: dict[str, Rule] = {
    "aten::convolution": convolution,
    "aten::_convolution": convolution,
    "aten::linear": partial(product, bias=2),
    "aten::mm": product,
    "aten::bmm": product,
    "aten::mv": product,
    "aten::matmul": product,
    "aten::addmm": partial(product, left=1, right=2, bias=0),
    "aten::addmv": partial(product, left=1, right=2, bias=0),
    "aten::baddbmm": partial(product, left=1, right=2, bias=0),
    "aten::native_layer_norm": partial(norm, primitive="ln", weight=2, bias=3),
    "aten::layer_norm": partial(norm, primitive="ln", weight=2, bias=3),
    "aten::native_group_norm": partial(norm, primitive="ln", weight=1, bias=2),
    "aten::group_norm": partial(norm, primitive="ln", weight=2, bias=3),
    "aten::rms_norm": partial(norm, primitive="ln", weight=2),
    "aten::_fused_rms_norm": partial(norm, primitive="ln", weight=2),
    "aten::batch_norm": partial(norm, primitive="bn", weight=1, bias=2),
    "aten::native_batch_norm": partial(norm, primitive="bn", weight=1, bias=2),
    "aten::cudnn_batch_norm": partial(norm, primitive="bn", weight=1, bias=2),
    "aten::_native_batch_norm_legit": partial(norm, primitive="bn", weight=1, bias=2),
    "aten::_native_batch_norm_legit_no_training": partial(norm, primitive="bn", weight=1, bias=2),
    "aten::_batch_norm_no_update": partial(norm, primitive="bn", weight=1, bias=2),
    "aten::_batch_norm_with_update": partial(norm, primitive="bn", weight=1, bias=2),
    "aten::max_pool1d": partial(pool, primitive="max_pool"),
    "aten::max_pool2d": partial(pool, primitive="max_pool"),
    "aten::max_pool3d": partial(pool, primitive="max_pool"),
    "aten::max_pool1d_with_indices": partial(pool, primitive="max_pool"),
    "aten::max_pool2d_with_indices": partial(pool, primitive="max_pool"),
    "aten::max_pool3d_with_indices": partial(pool, primitive="max_pool"),
    "aten::avg_pool1d": partial(pool, primitive="avg_pool"),
    "aten::avg_pool2d": partial(pool, primitive="avg_pool"),
    "aten::avg_pool3d": partial(pool, primitive="avg_pool"),
    "aten::adaptive_avg_pool1d": global_pool,
    "aten::adaptive_avg_pool2d": global_pool,
    "aten::_adaptive_avg_pool2d": global_pool,
    "aten::adaptive_avg_pool3d": global_pool,
    "aten::_adaptive_avg_pool3d": global_pool,
    "aten::mean": mean,
    "aten::embedding": lookup,
    "aten::index": lookup,
    "aten::index_select": lookup,
    "aten::gather": lookup,
    "aten::add": partial(join, primitive="sum"),
    "aten::add_": partial(join, primitive="sum"),
    "aten::cat": partial(join, primitive="concat"),
    "aten::stack": partial(join, primitive="concat"),
    "aten::mul": multiply,
    "aten::mul_": multiply,
    "aten::div": partial(multiply, gate=False),
    "aten::div_": partial(multiply, gate=False),
    "aten::addcmul": partial(multiply, gate=False),
    "aten::addcmul_": partial(multiply, gate=False),
    "aten::_softmax": softmax,
    "aten::softmax": softmax,
    "aten::_safe_softmax": softmax,
    "aten::scaled_dot_product_attention": attention,
    "aten::_scaled_dot_product_attention_math": attention,
    "aten::_scaled_dot_product_flash_attention": attention,
    "aten::_scaled_dot_product_flash_attention_for_cpu": attention,
    "aten::_scaled_dot_product_efficient_attention": attention,
    "aten::_scaled_dot_product_cudnn_attention": attention,
    "aten::_scaled_dot_product_fused_attention_overrideable": attention,
}

OPERATORS |= {
    f"aten::{name}": constant
    for name in (
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    )
}

OPERATORS |= {
    f"aten::{name}": activation
    for base in (
        *("relu", "gelu", "silu", "mish", "elu", "leaky_relu", "rrelu", "hardswish", "hardtanh", "tanh", "softplus"),
        *("celu", "selu", "threshold", "clamp_min", "glu", "_prelu_kernel", "hardshrink", "softshrink"),
    )
    for name in (base, f"{base}_")
}
