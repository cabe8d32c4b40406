"""Adapters that add nothing yet: modules that compute what their base computes, whatever the weights of the base are.

LoRA, VeRA, OFT, bottleneck adapters and others start like this. One module of each kind is tried, alone and on a few
numbers. Most models have nothing to try, because an adapter needs a parameter that is zero.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..utils.own_draws import keep_seed

NEUTRAL = "of an adapter that adds nothing yet, as a factor of it is zero"
_LEVELS = 3  # from the module that holds the zeros up to the adapter
_BASE = 8  # parameters of a base, at most: a layer, an MLP, an attention


class Adapted(NamedTuple):
    """A module with an adapter in it."""

    module: nn.Module
    base: Callable[..., Any]  # computes the same without the adapter
    names: list[str]  # the adapter's parameters


@torch.no_grad()
def neutral_adapters(named_modules: Sequence[tuple[str, nn.Module]]) -> list[Adapted]:
    """The adapters that add nothing. Values decide, so a model on the meta device has none."""
    modules, adds_nothing, found = dict(named_modules), dict[Any, bool](), dict[str, Adapted]()
    for path, holder in named_modules:
        if not any(_starts_adapters(key, p) for key, p in holder._parameters.items() if p is not None):
            continue
        parts = path.split(".") if path else []
        for end in range(len(parts), max(len(parts) - _LEVELS, 0), -1):
            name = ".".join(parts[:end])
            if name in found:
                break
            module = modules[name]
            base, inside = _base(module)
            own = {n: p for n, p in module.named_parameters() if not any(p is q for q in inside)}
            if not own or len(inside) > _BASE or _size(own.values()) > _size(inside):
                continue
            kind = type(module), tuple(n for n, p in own.items() if not p.any())
            if kind not in adds_nothing:
                adds_nothing[kind] = _adds_nothing(module)
            if adds_nothing[kind]:
                found[name] = Adapted(module, base, [f"{name}.{n}" for n in own])
                break
    return list(found.values())


def _starts_adapters(key: str, p: Tensor) -> bool:
    """Whether all values are zero, of a parameter that is neither a bias nor of a norm."""
    if "bias" in key or (key == "weight" and p.dim() < 2):
        return False
    has_values = type(p) is nn.Parameter and p.layout == torch.strided and not p.is_meta and p.numel() > 0
    return has_values and not p.as_strided((1,), (1,)).item() and not p.any()


def _base(module: nn.Module) -> tuple[Callable[..., Any], list[nn.Parameter]]:
    """The part to which an adapter is added, and its parameters: the class of a layer, or the largest child."""
    if isinstance(module, (nn.Linear, _ConvNd)):
        kind: Any = next(k for k in type(module).__mro__ if k.__module__.startswith("torch.nn.modules"))
        return partial(kind.forward, module), [p for p in (module.weight, module.bias) if isinstance(p, nn.Parameter)]
    part = max(module.children(), key=lambda m: _size(m.parameters()), default=nn.Identity())
    return part, list(part.parameters())


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(p.numel() for p in parameters)


@torch.no_grad()
def _adds_nothing(module: nn.Module) -> bool:
    """Whether a module computes the same as its base, with other weights of the base."""
    try:
        with keep_seed():
            trial = copy.deepcopy(module).float().cpu().eval()
            base, inside = _base(trial)
            draw = torch.Generator().manual_seed(0)
            for p in inside:
                p.data = torch.randn(p.shape, generator=draw)
            first: Any = next(m for m in trial.modules() if isinstance(m, (nn.Linear, _ConvNd)))
            linear = isinstance(first, nn.Linear)
            shape = (5, first.in_features) if linear else (first.in_channels, *[9] * len(first.kernel_size))
            x = torch.randn((2, *shape), generator=draw)
            expected, out = base(x), trial(x)
            return out.shape == expected.shape and torch.allclose(out, expected, rtol=1e-3, atol=1e-3)
    except Exception:  # whatever a module raises on such an input: it is no adapter of a layer
        return False
