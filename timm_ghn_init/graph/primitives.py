"""The table: which operator becomes which primitive.

An operator that is not listed is contracted: its inputs are joined to whatever consumes its output. A new operator of
PyTorch or timm is one line here. A rule is given the tape, the operator's arguments and its output, and says what is
known of the output; positions of arguments that differ between operators stand in the row.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from .rules.attention import attention, log_softmax, softmax
from .rules.layers import bilinear, convolution, deformable_convolution, product
from .rules.lookups import lookup
from .rules.merges import add, add_product, concat, interpolate, multiply, total
from .rules.moments import exponential, extremum, is_statistic, power, reduction
from .rules.norms import norm
from .rules.pooling import global_pool, mean, pool
from .tape import Tape, tensors_of
from .values import CONSTANT, Value

Rule = Callable[..., Value]


def activation(tape: Tape, args: Any, kwargs: Any, out: Any, features: bool = True) -> Value:
    """Its output are features, not logits; a statistic is still one."""
    value = tape.merge([tape.value(t) for t in tensors_of(args, kwargs)], "the slope of an activation")
    return value if is_statistic(value) else value._replace(activated=value.activated or features, norm=None)


def constant(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Takes a shape, or a type, from its argument and no values."""
    return CONSTANT


def same(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Its first argument in another form."""
    return tape.value(args[0])


def complex_number(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Made of two real tensors, or of length and angle: a weight of complex numbers is not predicted from either."""
    value = tape.contract("complex", tensors_of(args, kwargs))
    for name in value.leaves:
        tape.explain(name, "a part of complex numbers, and a GHN predicts real ones")
    return Value(value.origin)


OPERATORS: dict[str, Rule] = {
    "aten::convolution": convolution,
    "aten::_convolution": convolution,
    "torchvision::deform_conv2d": deformable_convolution,
    "aten::linear": partial(product, bias=2),
    "aten::mm": product,
    "aten::bmm": product,
    "aten::mv": product,
    "aten::_trilinear": bilinear,
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
    "aten::add": add,
    "aten::sub": add,
    "aten::rsub": add,
    "aten::lerp": interpolate,
    "aten::addcmul": add_product,
    "aten::addcdiv": partial(add_product, division=True),
    "aten::complex": complex_number,
    "aten::polar": complex_number,
    "aten::cat": concat,
    "aten::stack": concat,
    "aten::mul": multiply,
    "aten::div": partial(multiply, division=True),
    "aten::sum": total,
    "aten::var": reduction,
    "aten::std": reduction,
    "aten::var_mean": reduction,
    "aten::std_mean": reduction,
    "aten::norm": partial(reduction, dims=2),
    "aten::linalg_vector_norm": partial(reduction, dims=2),
    "aten::amax": reduction,
    "aten::amin": reduction,
    "aten::max": extremum,
    "aten::min": extremum,
    "aten::maximum": extremum,
    "aten::minimum": extremum,
    "aten::clamp": partial(activation, features=False),
    "aten::clamp_max": partial(activation, features=False),
    "aten::pow": power,
    "aten::rsqrt": partial(power, exponent=-0.5),
    "aten::reciprocal": partial(power, exponent=-1),
    "aten::exp": exponential,
    "aten::exp2": exponential,
    "aten::_log_softmax": log_softmax,
    "aten::log_softmax": log_softmax,
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
    for name in (
        *("relu", "gelu", "silu", "mish", "elu", "leaky_relu", "rrelu", "hardswish", "hardtanh", "tanh", "softplus"),
        *(
            "celu",
            "selu",
            "threshold",
            "clamp",
            "clamp_min",
            "clamp_max",
            "glu",
            "_prelu_kernel",
            "hardshrink",
            "softshrink",
        ),
    )
}

OPERATORS |= {
    f"aten::{name}": same
    for name in (
        *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand"),
        *("flatten", "unflatten", "slice", "select", "split", "split_with_sizes", "unbind", "narrow", "repeat"),
        *("alias", "detach", "clone", "contiguous", "_to_copy", "view_as", "expand_as", "_reshape_alias"),
        *("as_strided", "lift_fresh", "sqrt", "abs", "neg"),
    )
}

OPERATORS |= {f"{name}_": rule for name, rule in OPERATORS.items()}  # in place
