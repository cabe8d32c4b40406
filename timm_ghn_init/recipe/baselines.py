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
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..report import InitReport
from ..sources import Source
from ..utils.checks import InputError
from ..utils.threads import one_thread_each
from .assign import uninterrupted, unwritable
from .exact import exact
from .noise import seeded_generator
from .parametrised import Parametrised
from .pending import Pending
from .place import Place
from .postprocessing import Equations, Layer, check, list_layers, process, to_process

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_MAX_WORKERS = 3  # each holds one float32 copy of its layer


class _Draw(NamedTuple):
    """A parameter and what is to become of it."""

    parameter: nn.Parameter
    role: str  # as in InitReport.predicted
    fill: Callable[[Tensor], object]
    by: Parametrised | None = None  # what computes from it the weight that is drawn


def initialise(place: Place, source: Source, seed: int, progress: bool | None = None) -> InitReport:
    """Initialise a model in place with "rand" or "orth".

    Every layer is drawn from a generator of its own, on the CPU, so that the values depend on `seed` and the
    parameter's name only; the global random state is not touched.

    Args:
        place: a model that this process has whole.
        source: a source whose `baseline` is not None.
        seed: of everything that is drawn.
        progress: show progress bars; as in `postprocess`.

    Returns:
        What was drawn (`predicted`), what was orthogonalised (`postprocessed`) and what was left.

    Raises:
        ValueError: `layer` is not one of the model's layers, or a weight has no memory or is not floating point. The
            model is then as it was.
    """
    model, clock = place.model, place.clock
    layer = 1 if source.layer == "auto" else source.layer
    check(model, layer=layer, beta=0.0, overwritten={n for n, _ in model.named_parameters()})
    draws = _plan(model, seed)
    for name, draw in draws.items():
        problem = unwritable(draw.parameter)
        if problem:
            raise InputError(f"{place.name}: {name} {problem} Nothing was changed.")
    names = {id(draw.parameter): name for name, draw in draws.items()}
    layers = [found._replace(name=names[id(found.weight)]) for found in to_process(model, layer)]
    layers = layers if source.name == "orth" else []
    try:
        place.give_memory(list(draws))
        with Pending() as results:
            if layers:
                where = {found.name: place.device for found in layers}
                equations = Equations(0.0, True, seed)

                def read(found: Layer, whole: Tensor) -> None:
                    draws[found.name].fill(whole)

                with exact(place.device):
                    clock("postprocess", lambda: process(layers, equations, where, read, results, progress))
            _draw_computed(draws, results)
            with uninterrupted():
                clock("draw", lambda: _draw([draw for name, draw in draws.items() if name not in results.names()]))
                place.write({}, results)
    except BaseException:
        place.take_back()
        raise

    last = _last_layer(model)
    predicted = {n: draw.role for name, draw in draws.items() for n in (draw.by.parameters if draw.by else (name,))}
    return InitReport(
        model=place.name,
        source=str(source),
        device=str(next(p.device for p in model.parameters())),
        nodes=0,
        edges=0,
        predicted=predicted,
        skipped={
            n: "last layer" if n in last else "neither a layer nor a norm"
            for n, _ in model.named_parameters()
            if n not in predicted
        },
        sizes={n: p.numel() for n, p in model.named_parameters()},
        layer=layer if source.name == "orth" else None,
        postprocessed=tuple(found.name for found in layers),
        seed=seed,
        seconds=clock.seconds,
        own=place.own,
        unset=place.unset,
    )


def _draw_computed(draws: Mapping[str, _Draw], results: Pending) -> None:
    """Draw the weights that are computed from other tensors; `results` gets what to write into these."""
    for name, draw in draws.items():
        if draw.by is not None and name not in results.names():
            value = torch.empty(draw.parameter.shape, dtype=draw.parameter.dtype, device=draw.parameter.device)
            draw.fill(value)
            for written, tensor in draw.by.inverse(value).items():
                results.put(written, tensor)


def _draw(draws: list[_Draw]) -> None:
    with one_thread_each(_MAX_WORKERS) as map_:
        for _ in map_(lambda draw: draw.fill(draw.parameter.detach()), draws):
            pass


def he_std(weight: Tensor, groups: int = 1) -> float:
    """Standard deviation of He's initialisation for a ReLU: sqrt(2 / fan-out).

    Args:
        weight: (K, C, ...) of a convolution or (K, C) of a linear layer.
        groups: of the convolution; an input reaches K / groups of the outputs.
    """
    return math.sqrt(2 * groups / max(1, weight.shape[0] * weight[0, 0].numel()))


def _plan(model: nn.Module, seed: int) -> dict[str, _Draw]:
    """All that is written, by parameter; a parameter that several modules share once."""
    layers = {id(target.weight): target for target in to_process(model, 1)}
    computed = {id(target.module): target for target in layers.values() if target.by is not None}
    names = {id(p): n for n, p in model.named_parameters()}
    last = {id(model.get_parameter(n)) for n in _last_layer(model)}
    writes: dict[str, _Draw] = {}

    def add(
        parameter: nn.Parameter | None, role: str, fill: Callable[[Tensor], object], by: Parametrised | None = None
    ) -> None:
        if parameter is not None and id(parameter) not in last:
            name = names[id(parameter)]
            writes.setdefault(name, _Draw(parameter, role, fill, by))

    for module in model.modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        found = computed.get(id(module))
        weight, bias = own.get("weight") if found is None else found.weight, own.get("bias")
        if weight is not None and id(weight) in layers:
            std = he_std(weight, getattr(module, "groups", 1))
            stream = names[id(weight)] if found is None else found.stream
            add(weight, "weight", _normal(stream, seed, std), found and found.by)
            add(bias, "bias", nn.init.zeros_)
        elif isinstance(module, _NORMS) or _is_written_norm(module, own):
            add(weight, "norm", nn.init.ones_)
            add(bias, "norm", nn.init.zeros_)
    return writes


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


def _normal(name: str, seed: int, std: float) -> Callable[[Tensor], object]:
    def fill(parameter: Tensor) -> object:
        values = torch.empty(parameter.shape, dtype=torch.float32)
        return parameter.copy_(nn.init.normal_(values, std=std, generator=seeded_generator(seed, name)))

    return fill


def _last_layer(model: nn.Module) -> set[str]:
    """Names of the parameters of the last layer."""
    layers = list_layers(model)
    return (
        {n for n, p in model.named_parameters() if any(p is q for q in layers[-1][1].parameters())} if layers else set()
    )
