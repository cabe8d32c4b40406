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
    """The layer scales of a model, by name, but for those `kept`.

    A norm may call its weight "gamma" too, and then has a "beta", or is called a norm.
    """
    found: dict[int, tuple[str, Tensor]] = {}
    for path, module in model.named_modules():
        own = {name: p for name, p in module._parameters.items() if p is not None}
        if not own or "beta" in own or "norm" in type(module).__name__.lower():
            continue
        of_scales = _MODULE.search(type(module).__name__) or _MODULE.search(path.rpartition(".")[2])
        for name, parameter in own.items():
            vector = parameter.dim() > 0 and parameter.numel() == max(parameter.shape)
            if vector and (of_scales or _PARAMETER.fullmatch(name)):
                found.setdefault(id(parameter), (f"{path}.{name}" if path else name, parameter))
    return {name: p for name, p in found.values() if name not in kept}
