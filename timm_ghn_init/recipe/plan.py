"""What will be done to a model, settled before anything is written."""

import hashlib
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from ..graph import Graph, TraceError
from ..graph.classifier import declared_classifier
from ..sources import Source
from ..utils.text import logger
from ..weights.key import weights_key
from .parametrised import Parametrised, parametrised
from .postprocessing import Layer, check_options, layers_of, to_process
from .resolved import Resolved

_logger = logger(__name__)

# digest of a graph (see `_architecture`) -> name
_KNOWN_GRAPHS = {"9e85e8f32699e541": "resnet50", "837c889d79314b3e": "convnext_base"}
# name -> (its number of layers, the layer L tuned by the paper's authors, in the numbering of `list_layers`)
_TUNED_LAYERS = {"resnet50": (54, 37), "convnext_base": (113, 94)}
_GUESS = 0.75  # of the layers
_AFTER_THE_BODY = ("glob_avg", "avg_pool", "max_pool", "ln", "bn")


class Plan(NamedTuple):
    """What is predicted and post-processed in a model: all that the steps after it go by.

    Attributes:
        resolved: what predicts.
        graph: of the model.
        names: parameters to predict.
        skipped: the others -> why not.
        layer: the first to post-process, counted from 1; 0 without post-processing.
        seed: of the post-processing's noise.
        changed: the layers to post-process: predicted weights, and nothing else.
        computed: those of `names` that a weight is computed from -> that weight, for which the prediction is.
    """

    resolved: Resolved
    graph: Graph
    names: list[str]
    skipped: dict[str, str]
    layer: int
    seed: int
    changed: list[Layer]
    computed: dict[str, Parametrised]

    @property
    def source(self) -> Source:
        """The source that is really used."""
        return self.resolved.source

    @property
    def whole(self) -> list[str]:
        """Names of the parameters of which every value will be written."""
        return [n for n in self.names if self.graph.targets[n].whole] + list(self.companions)

    @property
    def written(self) -> list[str]:
        """Names of all parameters that are written to."""
        return [*self.names, *self.companions]

    @property
    def companions(self) -> dict[str, nn.Parameter]:
        """Parameters that follow from predicted ones: the lengths of weight norm, for one."""
        return {n: p for by in self.computed.values() for n, p in by.parameters.items() if n not in self.computed}

    def key(self, model: nn.Module, ghn: str) -> str:
        """As `weights_key`, for the GHN with this `ghn_digest`."""
        changed = [layer.name for layer in self.changed]
        return weights_key(model, ghn, self.graph, self.names, self.source, self.layer, self.seed, changed)


def make_plan(model: nn.Module, name: str, graph: Graph, resolved: Resolved, seed: int | None) -> Plan:
    """Work out what a source does to a model, whose values do not matter: it may be on the meta device.

    Args:
        name: of the model; the default of `layer` depends on it.
        seed: as in `init_model`.

    Raises:
        TraceError: nothing would be predicted.
    """
    source = resolved.source
    names, skipped = choose(graph, resolved.ghn.num_classes, source)
    if not names:
        raise TraceError(f"{name}: {source} predicts none of its parameters: {skipped}")
    seed, computed = source.seed_or(seed), _computed(model, names)
    plan = Plan(resolved, graph, names, skipped, 0, seed, [], computed)
    skipped = {n: reason for n, reason in skipped.items() if n not in plan.companions}
    plan = plan._replace(skipped=skipped)
    layers = layers_of(model)
    if not source.orth or not layers:
        return plan
    kept = _kept(model, graph, layers)
    layer = source.layer
    if layer == "auto":  # counted as if there were one layer for the logits, so that a backbone does not depend on it
        n_layers = sum(found.name not in kept for found in layers) + 1
        layer = auto_layer(_architecture(graph), n_layers, resolved.ghn.depth)
    check_options(model, layer, source.beta)
    weights = {id(model.get_parameter(n)): n for n in names if graph.targets[n].role == "weight"}
    found = to_process(model, layer, kept)
    changed = [f._replace(name=weights[id(f.weight)]) for f in found if id(f.weight) in weights]
    _tell_left(name, layers, layer, plan)
    return plan._replace(layer=layer, changed=changed)


def auto_layer(architecture: str | None, n_layers: int, depth: float | None = None) -> int:
    """The layer L to start from when the user names none.

    Args:
        architecture: timm or torchvision name; a timm tag (`.fb_in1k`) is ignored. None where there is no name.
        n_layers: `len(list_layers(model))`.
        depth: the part of the layers to leave as they are, from 0 up to 1, as it was chosen for a GHN (`GHN.depth`).

    Returns:
        The first layer beyond `depth`. For a GHN without one, the paper's tuned value where there is one (resnet50: 37
        of 54 layers, convnext_base: 94 of 113), provided the model has the same number of layers. Otherwise the first
        of the last quarter of the layers, which is a guess: it lies near the tuned values (69% and 83% of the depth)
        and nobody has tuned it.
    """
    if depth is not None:
        return math.floor(depth * n_layers) + 1
    tuned_for, layer = _TUNED_LAYERS.get((architecture or "").partition(".")[0], (None, 0))
    return layer if tuned_for == n_layers else auto_layer(None, n_layers, _GUESS)


def _architecture(graph: Graph) -> str | None:
    """The name of one of the architectures that the authors tuned, whatever the model calls itself.

    Input channels do not count, nor what comes after the last block (pooling, norm, classifier), nor the order in which
    branches are computed, nor whether a linear layer is written as a convolution.
    """
    heads = {target.param for target in graph.targets.values() if target.classifier}
    before, after = defaultdict[int, list[int]](list), defaultdict[int, set[int]](set)
    for u, v in graph.edges.tolist():
        before[v].append(u)
        after[u].add(v)
    body = set(range(len(graph.nodes)))
    for i, node in reversed(list(enumerate(graph.nodes))):  # in topological order
        if not after[i] & body and (node.param in heads or node.primitive in _AFTER_THE_BODY):
            body.remove(i)
    digests: dict[int, str] = {}  # of a node and all that comes before it
    for i in sorted(body):
        primitive, _, shape = graph.nodes[i]
        size = [int(s) for s in (shape or ())[:1]] + [int(s) for s in (shape or ())[2:] if s > 1]
        digests[i] = _digest([primitive, size, sorted(digests[u] for u in before[i])])
    return _KNOWN_GRAPHS.get(_digest(sorted(digests.values())))


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _kept(model: nn.Module, graph: Graph, layers: Sequence[Layer]) -> set[str]:
    """Names of the weights that post-processing leaves although they are predicted: those that yield the logits.

    Where a model does not declare its classifier and none is found, the last layer counts as one if it ends the graph,
    but for a pooling (SqueezeNet's convolution).
    """
    heads = {target.param for target in graph.targets.values() if target.classifier}
    if heads or declared_classifier(model, {}, None) is not None or hasattr(model, "feature_info"):
        return heads
    before = {v: u for u, v in graph.edges.tolist()}
    for node in set(range(len(graph.nodes))) - {u for u, _ in graph.edges.tolist()}:
        while graph.nodes[node].primitive in ("glob_avg", "avg_pool", "max_pool", "bias") and node in before:
            node = before[node]
        if graph.nodes[node].param == layers[-1].name:
            return {layers[-1].name}
    return set()


def _computed(model: nn.Module, names: Sequence[str]) -> dict[str, Parametrised]:
    found = ((list(by.parameters), by) for by in parametrised(model) if by.invertible)
    return {parameters[-1]: by for parameters, by in found if parameters and parameters[-1] in names}


def _tell_left(name: str, layers: Sequence[Layer], layer: int, plan: Plan) -> None:
    left = [f.name for f in layers[layer - 1 :] if f.by is not None and not f.by.invertible and f.name in plan.names]
    if left:
        _logger.warning(
            "%s: not post-processed, because a parametrisation without a right_inverse computes the weight: %s",
            name,
            ", ".join(left),
        )


def choose(graph: Graph, num_classes: int, source: Source) -> tuple[list[str], dict[str, str]]:
    """Names to predict, and why not the others: a classifier, for instance, of other classes than the GHN's."""
    names, skipped = [], dict(graph.skipped)
    for target in graph.targets.values():
        if not target.classifier:
            names.append(target.param)
        elif not source.classifier:
            skipped[target.param] = "classifier, left alone by classifier=0"
        elif target.shape[0] != num_classes:
            skipped[target.param] = f"classifier of {target.shape[0]} classes, the GHN predicts {num_classes}"
        else:
            names.append(target.param)
    return names, skipped
