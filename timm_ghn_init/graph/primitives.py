"""The table: which operator becomes which primitive.

An operator that is not listed is contracted: its inputs are joined to whatever consumes its output. A new operator of
PyTorch or timm is one word here. A rule is given the tape, the operator's arguments and its output, and says what is
known of the output; positions of arguments that differ between operators stand in the row.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from .rules.attention import attention, log_softmax, softmax
from .rules.layers import bilinear, convolution, deformable_convolution, product
from .rules.merges import add, add_product, concat, interpolate, multiply, total
from .rules.moments import exponential, extremum, is_statistic, power, reduction
from .rules.norms import norm
from .rules.pooling import global_pool, mean, pool
from .tape import Tape, tensors_of
from .values import CONSTANT, Value

Rule = Callable[..., Value]


def activation(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Its output are features, not logits; a statistic is still one."""
    value = tape.merge([tape.value(t) for t in tensors_of(args, kwargs)], "the slope of an activation")
    return value if is_statistic(value) else value._replace(activated=True, norm=None)


def constant(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Takes a shape, or a type, from its argument and no values."""
    return CONSTANT


def same(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Its first argument in another form."""
    return tape.value(args[0])


def lookup(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Indices only select features; a table in which the input is looked up (tokens, classes) is embedded."""
    x = tape.value(args[0])
    if x.origin:
        return x
    return tape.merge([tape.value(t) for t in tensors_of(args, kwargs)], "a table in which the input is looked up")


def complex_number(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Made of two real tensors, or of length and angle: a weight of complex numbers is not predicted from either."""
    value = tape.contract("complex", tensors_of(args, kwargs))
    for name in value.leaves:
        tape.explain(name, "a part of complex numbers, and a GHN predicts real ones")
    return Value(value.origin)


_BATCH_NORM = partial(norm, primitive="bn", weight=1, bias=2)
_ROWS: tuple[tuple[str, Rule], ...] = (
    ("convolution _convolution", convolution),
    ("linear", partial(product, bias=2)),
    ("mm bmm mv matmul", product),
    ("addmm addmv baddbmm", partial(product, left=1, right=2, bias=0)),
    ("_trilinear", bilinear),
    ("native_layer_norm layer_norm group_norm", partial(norm, primitive="ln", weight=2, bias=3)),
    ("native_group_norm", partial(norm, primitive="ln", weight=1, bias=2)),
    ("rms_norm _fused_rms_norm", partial(norm, primitive="ln", weight=2)),
    ("batch_norm native_batch_norm cudnn_batch_norm _native_batch_norm_legit", _BATCH_NORM),
    ("_native_batch_norm_legit_no_training _batch_norm_no_update _batch_norm_with_update", _BATCH_NORM),
    ("max_pool1d max_pool2d max_pool3d", partial(pool, primitive="max_pool")),
    ("max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices", partial(pool, primitive="max_pool")),
    ("avg_pool1d avg_pool2d avg_pool3d", partial(pool, primitive="avg_pool")),
    ("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d", global_pool),
    ("_adaptive_avg_pool2d _adaptive_avg_pool3d", global_pool),
    ("mean", mean),
    ("embedding index index_select gather", lookup),
    ("add sub rsub", add),
    ("lerp", interpolate),
    ("addcmul", add_product),
    ("addcdiv", partial(add_product, division=True)),
    ("complex polar", complex_number),
    ("cat stack", concat),
    ("mul", multiply),
    ("div", partial(multiply, division=True)),
    ("sum", total),
    ("var std var_mean std_mean amax amin", reduction),
    ("norm linalg_vector_norm", partial(reduction, dims=2)),
    ("max min maximum minimum", extremum),
    ("pow", power),
    ("rsqrt", partial(power, exponent=-0.5)),
    ("reciprocal", partial(power, exponent=-1)),
    ("exp exp2", exponential),
    ("_log_softmax log_softmax", log_softmax),
    ("_softmax softmax _safe_softmax", softmax),
    ("scaled_dot_product_attention _scaled_dot_product_attention_math", attention),
    ("_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu", attention),
    ("_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention", attention),
    ("_scaled_dot_product_fused_attention_overrideable", attention),
    ("empty_like zeros_like ones_like full_like rand_like randn_like randint_like", constant),
    ("new_empty new_zeros new_ones new_full new_empty_strided", constant),
    ("relu gelu silu mish elu leaky_relu rrelu hardswish hardtanh tanh softplus celu selu threshold", activation),
    ("clamp clamp_min clamp_max glu _prelu_kernel hardshrink softshrink", activation),
    ("view _unsafe_view reshape permute transpose t unsqueeze squeeze expand flatten unflatten slice select", same),
    ("split split_with_sizes unbind narrow repeat alias detach clone contiguous _to_copy view_as expand_as", same),
    ("_reshape_alias as_strided lift_fresh sqrt abs neg", same),
)

OPERATORS: dict[str, Rule] = {f"aten::{name}": rule for names, rule in _ROWS for name in names.split()}
OPERATORS |= {f"{name}_": rule for name, rule in OPERATORS.items()}  # in place
OPERATORS["torchvision::deform_conv2d"] = deformable_convolution
