"""The table: which operator, and which kind of module, becomes which primitive.

An operator that is not listed is contracted: its inputs are joined to whatever consumes its output. What PyTorch or
timm grows next is one line here. The entries name positions of arguments; `trace.py` has one method per entry type.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    """Scales features. A product of two things that depend on the input may be a gate; else contracted."""

    gate: bool = True


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
    "aten::div": Multiply(gate=False),
    "aten::div_": Multiply(gate=False),
    "aten::addcmul": Multiply(gate=False),
    "aten::addcmul_": Multiply(gate=False),
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

_NORM_NAME = re.compile(r"norm|^GRN$", re.IGNORECASE)
_NORM_WEIGHT = ("weight", "gamma", "scale")
_NORM_BIAS = ("bias", "beta")


@dataclass(frozen=True)
class WrittenNorm:
    """A norm layer that is written out in Python: its primitive and the names of its weight and bias."""

    primitive: str
    weight: str
    bias: str | None


def written_norm(module: nn.Module) -> WrittenNorm | None:
    """Recognise a norm layer by its class, None for any other module and for PyTorch's own norms.

    Those are known by their operator. The others (RMSNorm, FilterResponseNorm, EvoNorm, GlobalResponseNorm ...) have in
    common that they are called a norm, own nothing but vectors, a weight among them, and hold no other layer.
    """
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
        return None
    own = {name: p for name, p in module._parameters.items() if p is not None}
    weight = next((name for name in _NORM_WEIGHT if name in own), None)
    if weight is None or not _NORM_NAME.search(type(module).__name__):
        return None
    if any(p.dim() == 0 or max(p.shape) != p.numel() for p in own.values()) or _holds_layers(module):
        return None
    primitive = "bn" if "batchnorm" in type(module).__name__.lower() else "ln"
    return WrittenNorm(primitive, weight, next((name for name in _NORM_BIAS if name in own), None))


def _holds_layers(module: nn.Module) -> bool:
    return any(p.dim() > 1 for child in module.children() for p in child.parameters())


def is_layer(module: nn.Module | None) -> bool:
    """Whether a module's matrix parameters are layer weights by class, even where no input reaches them."""
    return isinstance(
        module, (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
    ) or is_convolution(module)


def is_convolution(module: nn.Module | None) -> bool:
    """Convolutions by class or, for those that mix several kernels into one, by what they keep."""
    return isinstance(module, nn.modules.conv._ConvNd) or (hasattr(module, "kernel_size") and hasattr(module, "groups"))


def unrolled_once(module: nn.RNNBase, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """The forward of an LSTM, GRU or RNN for one time step: its linear layers, in the order in which they follow.

    Recording every step would repeat the same layers as often as the sequence is long.
    """
    last = []
    for layer in range(module.num_layers):
        directions = []
        for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            h = x
            kinds = ("ih", "hh", "hr")[: 3 if module.proj_size else 2]
            # Of the gates, which are stacked, as many rows as one of them, or the layer that follows, has.
            widths = (module.proj_size or module.hidden_size, module.hidden_size, module.proj_size)
            for kind, width in zip(kinds, widths, strict=False):
                weight = getattr(module, f"weight_{kind}_l{layer}{suffix}")
                bias = getattr(module, f"bias_{kind}_l{layer}{suffix}", None)
                h = F.linear(h, weight, bias)[..., :width]
            directions.append(h)
            last.append(h.select(-2, -1))
        x = torch.cat(directions, -1) if module.bidirectional else directions[0]
    final = torch.stack(last)
    return x, (final, final) if isinstance(module, nn.LSTM) else final
