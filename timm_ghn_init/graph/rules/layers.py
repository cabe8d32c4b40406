"""Convolutions and linear layers, and the biases behind them."""

from typing import Any

from torch import Tensor

from ..modules import is_convolution, is_layer
from ..reduce import Op
from ..tape import Tape, without_ones
from ..values import Value
from .attention import attention_product


def convolution(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """weight (K, C/groups, ...), then a bias where there is one."""
    x, used = tape.value(args[0]), args[1]
    weight, bias = tape.value(used), tape.value(args[2])
    if not weight.leaves:
        return tape.merge((x, weight, bias), "the bias of a layer without a weight of its own")
    dilation, transposed, groups = args[5], args[6], args[8]
    kind = "conv" if groups == 1 or weight.origin else "dil_conv" if min(dilation) > 1 else "sep_conv"
    grid = (out.shape[-2], out.shape[-1]) if out.dim() == 4 else None
    value = add_layer(tape, kind, x, weight, used, used.shape[1] * groups if transposed else used.shape[0], grid)
    if bias.leaves:
        value = add_bias(tape, value, bias, args[2])
    return value


def product(
    tape: Tape, args: Any, kwargs: Any, out: Tensor, left: int = 0, right: int = 1, bias: int | None = None
) -> Value:
    """A matrix product: a linear layer if one factor is a parameter, part of attention if neither is."""
    added = args[bias] if bias is not None and len(args) > bias else None
    a, b, c = tape.value(args[left]), tape.value(args[right]), tape.value(added)
    if a.origin and b.origin:
        value = attention_product(tape, a, b)
    elif _is_weight(tape, b, a):
        value = _layer_product(tape, a, b, args[right], out)
    elif _is_weight(tape, a, b):
        value = _layer_product(tape, b, a, args[left], out)
    else:
        value = tape.merge((a, b), "a factor of a product that is no layer")
    if c.origin:
        return tape.merge((value, c), "")
    return _bias_or_table(tape, value, c, added) if c.leaves else value


def _is_weight(tape: Tape, weight: Value, x: Value) -> bool:
    """Whether a factor is the weight of a layer that is applied to the other factor."""
    if not weight.leaves or weight.origin:
        return False
    main = tape.main_leaf(weight, 0)
    if tape.parameters[main].dim() < 2:
        return False
    # With no input on the other side (learned queries, coordinates) only the class of the layer can tell.
    return bool(x.origin) or is_layer(tape.owner(main))


def _layer_product(tape: Tape, x: Value, weight: Value, used: Tensor, out: Tensor) -> Value:
    main = tape.main_leaf(weight, used.numel())
    if x.origin and is_convolution(tape.owner(main)) and tape.parameters[main].dim() == 2:
        return Value(x.origin, weight.leaves)  # mixes kernels: the layer is the convolution that follows
    return add_layer(tape, "conv", x, weight, used, out.shape[-1])


def _bias_or_table(tape: Tape, x: Value, bias: Value, used: Any) -> Value:
    if x.attention == "scores" or not x.origin:
        return tape.merge((x, bias), "an attention bias")
    return add_bias(tape, x, bias, used)


def add_layer(
    tape: Tape, kind: str, x: Value, weight: Value, used: Tensor, channels: int, grid: tuple[int, int] | None = None
) -> Value:
    for name in x.leaves:
        tape.explain(name, "a token or query that goes through a layer")
    main = tape.main_leaf(weight, used.numel())
    shape = tape.node_shape(weight, main, used)
    kernel = None
    if weight.origin:  # several kernels mixed into one, by the input: each expert is predicted as that kernel
        kernel = shape = _expert_kernel(tape.owner(main))
    op = Op(kind, x.origin | weight.origin, main, shape, channels=channels, grid=grid)
    origin = tape.add(op)
    tape.use(weight, len(tape.ops) - 1, "weight", shape, main, kernel=kernel)
    return Value(origin, attention=x.attention)


def is_bias(tape: Tape, x: Value, p: Value, extent: int) -> bool:
    """Whether a vector is added to the channels that a layer has just put out."""
    last = tape.ops[next(iter(x.origin))]
    if len(x.origin) > 1 or last.kind not in ("conv", "sep_conv", "dil_conv") or last.channels != extent:
        return False
    # Attention scores still have the projection of q and k as their origin, not only where a layer mixes the heads.
    return x.attention != "scores" or all(tape.owner(n) is tape.owner(last.param) for n in p.leaves)


def add_bias(tape: Tape, x: Value, bias: Value, used: Tensor) -> Value:
    main = tape.main_leaf(bias, used.numel())
    shape = without_ones(tape.node_shape(bias, main, used))
    kernel = None
    if bias.origin:  # of several experts, mixed by the input
        kernel = shape = tuple(tape.parameters[main].shape[1:])
    origin = tape.add(Op("bias", x.origin, main, shape))
    tape.use(bias, len(tape.ops) - 1, "bias", shape, main, kernel=kernel)
    return Value(origin, attention=x.attention)


def _expert_kernel(owner: Any) -> tuple[int, ...]:
    """(K, C/groups, kh, kw) of a convolution that keeps its kernels as one (experts, numel) parameter."""
    shape = getattr(owner, "weight_shape", None)
    if shape is not None:
        return tuple(shape)
    return (owner.out_channels, owner.in_channels // owner.groups, *owner.kernel_size)
