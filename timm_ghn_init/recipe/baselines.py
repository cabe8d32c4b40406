"""RAND and ORTH, the paper's baselines without a hypernetwork (arXiv 2207.10049, Section 4).

RAND is He initialisation as it is standard for ResNets: weights of convolutions and linear layers from a normal
distribution of variance 2 / fan-out, no bias, norm layers that change nothing. That is what the authors' code draws
for a ResNet (torchvision's own initialisation). For ConvNeXt torchvision draws another one, a truncated normal of
standard deviation 0.02, as timm does; there the paper's RAND, which it describes as He's, is `pretrained=False`.

ORTH is RAND with Eq. (2) applied to what was drawn, from layer L on (default: everywhere): Q * sign(diag R) of a
Gaussian matrix, the orthogonal initialisation of Saxe et al. and of `torch.nn.init.orthogonal_`.

As in the authors' code the last layer, the classifier, stays as the model itself has drawn it; so does everything that
is neither such a layer nor a norm: layer scale, tokens, position embeddings.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from .noise import seeded_generator
from .postprocessing import list_layers, to_process
from .wrappers import name_inside

Fill = Callable[[torch.Size], Tensor]

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def rand(model: nn.Module, seed: int) -> Iterator[tuple[str, Tensor | str]]:
    """He initialisation (arXiv 1502.01852): a source's function, see `offer.Function`.

    Every weight is drawn from a generator of its own, on the CPU, so that its values depend on the seed and the
    parameter's name only.
    """
    layers = {id(target.module): target for target in to_process(model, 1)}
    shared = {id(target.weight): target for target in layers.values()}
    names = {id(p): n for n, p in model.named_parameters()}
    last, inside = _last_layer(model), name_inside(model)
    left = dict.fromkeys(names.values(), "neither a layer nor a norm") | dict.fromkeys(last, "last layer")

    def drawn(module: nn.Module) -> list[tuple[nn.Parameter | None, Fill]]:
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        found = layers.get(id(module)) or shared.get(id(own.get("weight")))
        if found is not None:
            std = he_std(found.weight, getattr(module, "groups", 1))
            stream = inside(names[id(found.weight)]) if found.by is None else found.stream
            draw = partial(normal, std=std, seed=seed, stream=stream)
            return [(found.weight, draw), (own.get("bias"), torch.zeros)]
        if isinstance(module, _NORMS) or _is_written_norm(module, own):
            return [(own.get("weight"), torch.ones), (own.get("bias"), torch.zeros)]
        return []

    for module in model.modules():
        for parameter, fill in drawn(module):
            name = names.get(id(parameter), "")
            if name not in last and left.pop(name, "") and parameter is not None:  # what modules share once
                yield name, fill(parameter.shape)
    yield from left.items()


def normal(shape: torch.Size, std: float, seed: int, stream: str) -> Tensor:
    """Float32 values from N(0, std^2), drawn from the generator of this seed and name."""
    return torch.empty(shape, dtype=torch.float32).normal_(std=std, generator=seeded_generator(seed, stream))


def he_std(weight: Tensor, groups: int = 1) -> float:
    """He's standard deviation for a ReLU: sqrt(2 / fan-out). An input reaches K / groups of the outputs."""
    return math.sqrt(2 * groups / max(1, weight.shape[0] * weight[0, 0].numel()))


def _is_written_norm(module: nn.Module, own: dict[str, nn.Parameter]) -> bool:
    """A norm layer that is written out in Python (RMSNorm, FilterResponseNorm, EvoNorm ...), by its class.

    There is no graph here to know it by what it computes. Such layers have in common that they are called a norm, own
    nothing but vectors, a weight among them, and hold no other layer.
    """
    if "weight" not in own or not re.search(r"norm|^GRN$", type(module).__name__, re.IGNORECASE):
        return False
    return all(p.dim() > 0 and max(p.shape) == p.numel() for p in own.values()) and not any(
        p.dim() > 1 for child in module.children() for p in child.parameters()
    )


def _last_layer(model: nn.Module) -> set[str]:
    """Names of the parameters of the last layer."""
    last = {id(p) for _, module in list_layers(model)[-1:] for p in module.parameters()}
    return {n for n, p in model.named_parameters() if id(p) in last}
