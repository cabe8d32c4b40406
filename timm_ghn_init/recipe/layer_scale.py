"""Layer scales: vectors that multiply the output of a residual branch (ConvNeXt, CaiT, DINOv2, EVA ...).

Their usual 1e-6 hides all that the branches compute, whatever their weights. No GHN predicts them, so they keep their
values or get one that is chosen. Whole networks of random weights need them small; predicted ones do better with more.
"""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

# Names of the parameter, and of the module that owns nothing else.
_PARAMETER = re.compile(r"gamma(_?\d|_\w+)?|layer_?scale\w*|lambda_?\d?|ls\d", re.IGNORECASE)
_MODULE = re.compile(r"layer_?scale", re.IGNORECASE)


def layer_scales(model: nn.Module, kept: Collection[str]) -> dict[str, Tensor]:
    """The layer scales of a model, by name, but for those `kept`."""
    found: dict[int, tuple[str, Tensor]] = {}
    for path, module in model.named_modules():
        own = tuple(name for name, p in module._parameters.items() if p is not None)
        for name in _names_of_scales(type(module).__name__, path.rpartition(".")[2], own) if own else ():
            parameter: Any = module._parameters[name]
            if parameter.dim() > 0 and parameter.numel() == max(parameter.shape):
                found.setdefault(id(parameter), (f"{path}.{name}" if path else name, parameter))
    return {name: p for name, p in found.values() if name not in kept}


@lru_cache(maxsize=4096)
def _names_of_scales(cls: str, module: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of layer scales, by the names of a class, of a module of it and of all parameters of the module.

    A norm may call its weight "gamma" too, and then has a "beta", or is called a norm.
    """
    if "beta" in names or "norm" in cls.lower():
        return ()
    if _MODULE.search(cls) or _MODULE.search(module):
        return names
    return tuple(name for name in names if _PARAMETER.fullmatch(name))
