"""Layer scales: vectors that multiply the output of a residual branch (ConvNeXt, CaiT, DINOv2, EVA ...).

Their usual 1e-6 hides all that the branches compute, whatever their weights. No GHN predicts them, so they keep their
values or get one that is chosen. Whole networks of random weights need them small; predicted ones do better with more.
"""

import re
from collections.abc import Collection

from torch import Tensor, nn

# Names of the parameter, and of the module that owns nothing else.
_PARAMETER = re.compile(r"gamma(_?\d|_\w+)?|layer_?scale\w*|lambda_?\d?|ls\d", re.IGNORECASE)
_MODULE = re.compile(r"layer_?scale", re.IGNORECASE)


def layer_scales(model: nn.Module, kept: Collection[str]) -> dict[str, Tensor]:
    """The layer scales of a model, by name.

    A norm may call its weight "gamma" too, and then has a "beta", or is called a norm.

    Args:
        model: may be on the meta device.
        kept: names of parameters to leave out.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        of_scales = _MODULE.search(type(module).__name__) or _MODULE.search(path.rpartition(".")[2])
        if "beta" in own or "norm" in type(module).__name__.lower():
            continue
        for name, parameter in own.items():
            vector = parameter.dim() > 0 and parameter.numel() == max(parameter.shape)
            if vector and (of_scales or _PARAMETER.fullmatch(name)) and names[id(parameter)] not in kept:
                found[names[id(parameter)]] = parameter
    return found
