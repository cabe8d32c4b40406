"""Facts that only the class of a module shows."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def is_layer(module: nn.Module | None) -> bool:
    """Whether a module's matrix parameters are layer weights by class, even where no input reaches them."""
    return isinstance(
        module, (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
    ) or is_convolution(module)


def is_convolution(module: nn.Module | None) -> bool:
    """Convolutions by class or, for those that mix several kernels into one, by what they keep."""
    return isinstance(module, nn.modules.conv._ConvNd) or (hasattr(module, "kernel_size") and hasattr(module, "groups"))


def may_scale(module: nn.Module) -> bool:
    """Whether a module holds one weight and has a forward of its own: it may multiply what it computes by a constant.

    Equalised learning rates (arXiv 1710.10196, Section 4.1) do. With several weights, as in attention, a
    constant may be part of what is computed.
    """
    if module._modules or not module._parameters or "forward" in vars(module):
        return False
    if type(module).forward.__module__.startswith("torch.nn."):
        return False
    return sum(p is not None and p.dim() > 1 for p in module._parameters.values()) == 1


def unrolled_once(module: nn.RNNBase, x: Any, state: Any = None) -> tuple[Any, Any]:
    """The forward of an LSTM, GRU or RNN for one time step: its linear layers, in the order in which they follow.

    Recording every step would repeat the same layers as often as the sequence is long.
    """
    packed = x if isinstance(x, PackedSequence) else None
    if packed is not None:
        x = packed.data
    last = []
    for layer in range(module.num_layers):
        directions = []
        for suffix in ("", "_reverse")[: 2 if module.bidirectional else 1]:
            h = x
            kinds = ("ih", "hh", "hr")[: 3 if module.proj_size else 2]
            # Gates are stacked. One of them is enough: as many rows as the state, or the projection of it, has.
            widths = (module.proj_size or module.hidden_size, module.hidden_size, module.proj_size)
            for kind, width in zip(kinds, widths, strict=False):
                weight = getattr(module, f"weight_{kind}_l{layer}{suffix}")
                bias = getattr(module, f"bias_{kind}_l{layer}{suffix}", None)
                h = F.linear(h, weight, bias)[..., :width]
            directions.append(h)
            last.append(_last_step(h, module, packed))
        x = torch.cat(directions, -1) if module.bidirectional else directions[0]
    final = torch.stack(last)
    if packed is not None:
        x = packed._replace(data=x)
    return x, (final, final) if isinstance(module, nn.LSTM) else final


def _last_step(h: Tensor, module: nn.RNNBase, packed: PackedSequence | None) -> Tensor:
    if packed is not None:
        return h.narrow(0, 0, int(packed.batch_sizes[0]))
    return h.select(-2 if module.batch_first or h.dim() == 2 else -3, -1)
