"""The table: which operator, and which kind of module, becomes which primitive.

An operator that is not listed is contracted: its inputs are joined to whatever consumes its output. What PyTorch or
timm grows next is one line here. The entries name positions of arguments; `trace.py` has one method per entry type.
"""

import re
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Convolution:
    """weight (K, C/groups, ...), then a bias where there is one."""

    weight: int = 1
    bias: int = 2


@dataclass(frozen=True)
class Product:
    """A matrix product: a linear layer if one factor is a parameter, part of attention if neither is."""

    left: int = 0
    right: int = 1
    bias: int | None = None


@dataclass(frozen=True)
class Norm:
    primitive: str
    weight: int
    bias: int | None = None


@dataclass(frozen=True)
class Pool:
    primitive: str
    kernel: int = 1


@dataclass(frozen=True)
class GlobalPool:
    """Pooling that is global by its own account."""


@dataclass(frozen=True)
class Mean:
    """A mean: global average pooling where it runs over the spatial dimensions, contracted otherwise."""


@dataclass(frozen=True)
class Join:
    """Several inputs become one: an addition, or a concatenation."""

    primitive: str


@dataclass(frozen=True)
class Multiply:
    """A gate, where pooled features meet the features they come from; else contracted."""


@dataclass(frozen=True)
class Softmax:
    """Turns attention scores into attention weights; the product that applies those is the `msa`."""


@dataclass(frozen=True)
class Attention:
    """Fused attention: q, k, v and perhaps an additive mask."""


@dataclass(frozen=True)
class Constant:
    """Takes a shape, or a type, from its argument and no values."""


Operator = Constant | Convolution | Product | Norm | Pool | GlobalPool | Mean | Join | Multiply | Softmax | Attention

OPERATORS: dict[str, Operator] = {
    "aten::convolution": Convolution(),
    "aten::_convolution": Convolution(),
    "aten::linear": Product(bias=2),
    "aten::mm": Product(),
    "aten::bmm": Product(),
    "aten::mv": Product(),
    "aten::matmul": Product(),
    "aten::addmm": Product(1, 2, bias=0),
    "aten::addmv": Product(1, 2, bias=0),
    "aten::baddbmm": Product(1, 2, bias=0),
    "aten::native_layer_norm": Norm("ln", 2, 3),
    "aten::layer_norm": Norm("ln", 2, 3),
    "aten::native_group_norm": Norm("ln", 1, 2),
    "aten::group_norm": Norm("ln", 2, 3),
    "aten::rms_norm": Norm("ln", 2),
    "aten::_fused_rms_norm": Norm("ln", 2),
    "aten::batch_norm": Norm("bn", 1, 2),
    "aten::native_batch_norm": Norm("bn", 1, 2),
    "aten::cudnn_batch_norm": Norm("bn", 1, 2),
    "aten::_native_batch_norm_legit": Norm("bn", 1, 2),
    "aten::_native_batch_norm_legit_no_training": Norm("bn", 1, 2),
    "aten::_batch_norm_no_update": Norm("bn", 1, 2),
    "aten::_batch_norm_with_update": Norm("bn", 1, 2),
    "aten::max_pool1d": Pool("max_pool"),
    "aten::max_pool2d": Pool("max_pool"),
    "aten::max_pool3d": Pool("max_pool"),
    "aten::max_pool1d_with_indices": Pool("max_pool"),
    "aten::max_pool2d_with_indices": Pool("max_pool"),
    "aten::max_pool3d_with_indices": Pool("max_pool"),
    "aten::avg_pool1d": Pool("avg_pool"),
    "aten::avg_pool2d": Pool("avg_pool"),
    "aten::avg_pool3d": Pool("avg_pool"),
    "aten::adaptive_avg_pool1d": GlobalPool(),
    "aten::adaptive_avg_pool2d": GlobalPool(),
    "aten::_adaptive_avg_pool2d": GlobalPool(),
    "aten::adaptive_avg_pool3d": GlobalPool(),
    "aten::_adaptive_avg_pool3d": GlobalPool(),
    "aten::mean": Mean(),
    "aten::add": Join("sum"),
    "aten::add_": Join("sum"),
    "aten::cat": Join("concat"),
    "aten::stack": Join("concat"),
    "aten::mul": Multiply(),
    "aten::mul_": Multiply(),
    "aten::_softmax": Softmax(),
    "aten::softmax": Softmax(),
    "aten::_safe_softmax": Softmax(),
    "aten::scaled_dot_product_attention": Attention(),
    "aten::_scaled_dot_product_attention_math": Attention(),
    "aten::_scaled_dot_product_flash_attention": Attention(),
    "aten::_scaled_dot_product_flash_attention_for_cpu": Attention(),
    "aten::_scaled_dot_product_efficient_attention": Attention(),
    "aten::_scaled_dot_product_cudnn_attention": Attention(),
    "aten::_scaled_dot_product_fused_attention_overrideable": Attention(),
}

OPERATORS |= {
    f"aten::{name}": Constant()
    for name in (
        *("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like"),
        *("new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"),
    )
}

_NORM_NAME = re.compile(r"norm", re.IGNORECASE)


def norm_primitive(module: nn.Module) -> str | None:
    """"bn" or "ln" for a norm layer that is written out in Python, None for any other module.

    PyTorch's own norms are recognised by their operator. The others (RMSNorm, FilterResponseNorm, EvoNorm,
    GlobalResponseNorm ...) have in common that they are called a norm and own nothing but vectors.
    """
    own = [p for p in module._parameters.values() if p is not None]
    if not own or not _NORM_NAME.search(type(module).__name__) or any(max(p.shape, default=1) != p.numel() for p in own):
        return None
    is_batch_norm = isinstance(module, nn.modules.batchnorm._BatchNorm) or "batchnorm" in type(module).__name__.lower()
    return "bn" if is_batch_norm else "ln"


def is_layer(module: nn.Module | None) -> bool:
    """Whether a module's matrix parameters are layer weights by class, even where no input reaches them."""
    return isinstance(module, (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase)) or is_convolution(module)


def is_convolution(module: nn.Module | None) -> bool:
    """Convolutions by class or, for those that mix several kernels into one, by what they keep."""
    return isinstance(module, nn.modules.conv._ConvNd) or (hasattr(module, "kernel_size") and hasattr(module, "groups"))
