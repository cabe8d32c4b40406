"""Convolutions and linear layers, and the biases that come with them."""

import math
from typing import Any

from torch import Tensor

from ..modules import is_convolution, is_layer
from ..reduce import Op
from ..tape import Tape
from ..values import Value, union
from .attention import among_pairs, attention_product, lookup
from .biases import add_bias, is_bias
from .merges import summed, unstacked
from .moments import inner_product


def convolution(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """weight (K, C/groups, ...), then a bias where there is one."""
    dilation, transposed, groups = args[5], args[6], args[8]
    return _convolve(tape, tape.features(args[0]), args[1], args[2], out, dilation, transposed, groups)


def deformable_convolution(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """torchvision's: features, weight, offsets, mask, bias, strides, paddings, dilations, groups ..."""
    x = union([tape.value(args[i]) for i in (0, 2, 3)])
    return _convolve(tape, x, args[1], args[4], out, args[9:11], False, args[11])


def _convolve(
    tape: Tape, x: Value, used: Tensor, added: Any, out: Tensor, dilation: Any, transposed: bool, groups: int
) -> Value:
    weight, bias = tape.value(used), tape.value(added)
    if not weight.leaves:
        return tape.merge((x, weight, bias), "the bias of a layer without a weight of its own")
    shape = tuple(used.shape)
    if weight.origin:  # one kernel for each image, which is a group of the convolution
        shape = _kernel(tape, weight, used)
        groups //= used.shape[0] // shape[0]
    kind = "conv" if groups == 1 else "dil_conv" if min(dilation) > 1 else "sep_conv"
    grid = (out.shape[-2], out.shape[-1]) if out.dim() > 3 else None
    kernel = shape if weight.origin else None
    value = _add_layer(tape, kind, x, weight, used, out, shape[1] * groups if transposed else shape[0], kernel, grid)
    return add_bias(tape, value, bias, added) if bias.leaves else value


def product(
    tape: Tape, args: Any, kwargs: Any, out: Tensor, left: int = 0, right: int = 1, bias: int | None = None
) -> Value:
    """A matrix product: a linear layer if one factor is a parameter, part of attention if neither is."""
    added = args[bias] if bias is not None and len(args) > bias else None
    a, b, c = tape.value(args[left]), tape.value(args[right]), tape.value(added)
    if b.leaves:
        a = tape.features(args[left])
    elif a.leaves:
        b = tape.features(args[right])
    if _is_weight(tape, b, a):
        value = lookup(tape, a, b) or _layer_product(tape, a, b, args[right], out, -1)
    elif _is_weight(tape, a, b):
        value = _layer_product(tape, b, a, args[left], out, -2 if out.dim() > 1 else -1)
    elif a.origin and b.origin:
        value = attention_product(tape, a, b, out)
        if out.shape[-2:] == (1, 1):
            value = inner_product(a, b, args[left], value)
    else:
        value = tape.merge((a, b), "a factor of a product that is no layer")
        value = unstacked(tape, value, args[left] if a.origin else args[right], out) or value
    if c.origin:
        return summed(tape, value, c)
    return _bias_or_table(tape, value, c, added) if c.leaves else value


def bilinear(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """nn.Bilinear: a layer of two inputs, x W y."""
    a, weight, b = (tape.value(t) for t in args[:3])
    if not weight.leaves or weight.origin or not (a.origin or b.origin):
        return tape.merge((a, weight, b), "a factor of a product that is no layer")
    return _add_layer(tape, "conv", union((a, b)), weight, args[1], out, out.shape[-1])


def _is_weight(tape: Tape, weight: Value, x: Value) -> bool:
    """Whether a factor is the weight of a layer that is applied to the other factor."""
    if not weight.leaves or (weight.origin and (x.leaves or not x.origin)):
        return False
    main = tape.main_leaf(weight, 0)
    if tape.parameters[main].dim() < 2:
        return False
    if x.origin:
        return True
    # With no input on the other side (learned queries, coordinates) only the class of the layer can tell.
    return is_layer(tape.owner(main)) and not any(is_layer(tape.owner(name)) for name in x.leaves)


def _layer_product(tape: Tape, x: Value, weight: Value, used: Tensor, out: Tensor, channels: int) -> Value:
    """A layer, or experts that are mixed.

    Args:
        channels: the dimension of `out` that the layer's channels are in.
    """
    main = tape.main_leaf(weight, used.numel())
    held = tape.parameters[main]
    flat = held.dim() == 2 and is_convolution(tape.owner(main))
    stacked = held.dim() > 4 and held.shape[0] == used.shape[-1 if channels == -2 else -2] != out.shape[channels]
    if x.origin and (flat or stacked):
        return Value(x.origin, weight.leaves)  # mixes kernels: the layer is the convolution that follows
    kernel = tuple(held.shape)[-2:] if weight.origin else None  # one matrix for each image
    return _add_layer(tape, "conv", x, weight, used, out, out.shape[channels], kernel)


def _bias_or_table(tape: Tape, x: Value, bias: Value, used: Any) -> Value:
    if not x.origin or (x.attention == "scores" and not is_bias(tape, x, bias, used.numel())):
        return tape.merge((x, bias), "an attention bias")
    return add_bias(tape, x, bias, used)


def _add_layer(
    tape: Tape,
    kind: str,
    x: Value,
    weight: Value,
    used: Tensor,
    out: Tensor,
    channels: int,
    kernel: tuple[int, ...] | None = None,
    grid: tuple[int, int] | None = None,
) -> Value:
    """A layer's node.

    Args:
        used: the weight as it is used.
        out, channels: what the layer puts out, and how many channels that has.
        kernel: the weight's shape, where the input mixes or scales it: each expert is predicted as what they make.
        grid: spatial size of the output.
    """
    for name in x.leaves:
        tape.explain(name, "goes through a layer, as a token or a query")
    main = tape.main_leaf(weight, used.numel())
    shape = kernel or tape.node_shape(weight, main, used)
    origin = tape.add(Op(kind, x.origin | weight.origin, main, shape, channels=channels, grid=grid))
    is_composed = len(weight.leaves) > 1 and not weight.parts
    if is_composed and all(tape.parameters[name].numel() < used.numel() for name in weight.leaves):
        tape.composed.add(len(tape.ops) - 1)
    scale = tape.provenance.factor(used, tape.stand_ins.get(main))
    if x.scale != 1 and tape.layer is not None and tape.owner(main) is tape.layer:
        scale *= x.scale
    tape.use(weight, len(tape.ops) - 1, "weight", shape, main, kernel=kernel, scale=scale)
    return among_pairs(tape, x, Value(origin), out.numel() // max(channels, 1))


def _kernel(tape: Tape, weight: Value, used: Tensor) -> tuple[int, ...]:
    """(K, C/groups, kh, kw) of a convolution's kernel that is made for each image from one or several parameters."""
    shape = tuple(tape.parameters[tape.main_leaf(weight, used.numel())].shape)
    if len(shape) == 2:  # (experts, numel)
        return (shape[1] // math.prod(used.shape[1:]), *used.shape[1:])
    return shape[1:] if len(shape) > used.dim() else shape
