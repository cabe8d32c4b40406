"""The plan for a model, settled before anything is written."""

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from ..graph import Graph, TraceError
from ..graph.classifier import declared_classifier
from ..graph.neutral import NEUTRAL
from ..sources import Source
from ..utils.checks import InputError
from ..utils.text import logger
from ..weights.key import weights_key
from .layer_scale import layer_scales
from .offer import Offer, Resolved
from .parametrised import Computed, Scaled, parametrised, with_companions
from .postprocessing import Equations, Layer, check_options, layers_of, to_process
from .unnormed import scale_of_orthogonal

_logger = logger(__name__)

# digest of operations (see `_architecture`) -> name
_KNOWN_GRAPHS = {"3ad0c420d5b97e79": "resnet50", "485e26beb315be0f": "convnext_base"}
# name -> (its number of layers, the layer L tuned by the paper's authors, in the numbering of `list_layers`)
_TUNED_LAYERS = {"resnet50": (54, 37), "convnext_base": (113, 94)}
_GUESS = 0.75  # of the layers
_MAYBE_AFTER_THE_BODY = ("glob_avg", "avg_pool", "max_pool", "ln", "bn")


class Plan(NamedTuple):
    """The plan of a source for a model, which all later steps follow."""

    resolved: Resolved  #: what predicts, or what else has values
    offer: Offer  #: what it has for this model
    names: list[str]  #: parameters that get its values
    skipped: dict[str, str]  #: the others -> why not
    layer: int  #: the first to post-process, counted from 1; 0 without post-processing
    seed: int  #: of all that is drawn at random
    changed: list[Layer]  #: the layers to post-process: weights among `names`, and nothing else
    computed: dict[str, Computed]  #: those of `names` that a weight is computed from -> that weight
    scaled: tuple[str, ...] = ()  #: layer scales that get `layer_scale`
    unnormed: tuple[str, ...] = ()  #: weights whose predictions are scaled, see `unnormed.py`
    notes: tuple[str, ...] = ()  #: as in `InitReport`

    @property
    def layer_scale(self) -> float | None:
        """None where they keep their own."""
        asked, ghn = self.source.layer_scale, self.resolved.ghn
        if asked == "auto":
            return None if ghn is None else ghn.layer_scale
        return None if asked == "keep" else float(asked)

    @property
    def source(self) -> Source:
        return self.resolved.source

    @property
    def graph(self) -> Graph:
        assert self.offer.graph is not None
        return self.offer.graph

    @property
    def equations(self) -> Equations:
        source = self.source
        return Equations(source.beta if source.orth else 0.0, source.orthogonal, self.seed)

    @property
    def whole(self) -> list[str]:
        """Names of the parameters of which every value will be written."""
        return [n for n in self.names if self.offer.whole(n)] + list(self.companions)

    @property
    def roles(self) -> dict[str, str]:
        """All parameters that are written to, and what each is."""
        return {n: self.offer.roles.get(n, "weight") for n in (*self.names, *self.companions)}

    @property
    def companions(self) -> dict[str, nn.Parameter]:
        """Parameters that follow from predicted ones: the lengths of weight norm, for one."""
        return {n: p for by in self.computed.values() for n, p in by.parameters.items() if n not in self.computed}

    def without(self, names: Collection[str]) -> "Plan":
        """This plan for what is left when others write to the parameters of these names."""
        return self._replace(
            names=[n for n in self.names if n not in names],
            changed=[layer for layer in self.changed if layer.name not in names],
            computed={n: by for n, by in self.computed.items() if n not in names},
            scaled=tuple(n for n in self.scaled if n not in names),
            unnormed=tuple(n for n in self.unnormed if n not in names),
        )

    def key(self, model: nn.Module, ghn: str) -> str:
        """As `weights_key`, for the GHN with this `ghn_digest`."""
        changed = [layer.name for layer in self.changed]
        written = self.names, self.unnormed
        return weights_key(model, ghn, self.graph, *written, self.source, self.layer, self.seed, changed)


def make_plan(
    model: nn.Module,
    name: str,
    offer: Offer,
    resolved: Resolved,
    seed: int | None,
    kept: Mapping[str, str] | None = None,
    unnormed: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    graph: Graph | None = None,
) -> Plan:
    """Work out what a source does to a model, which may be on the meta device.

    Parameters that are `kept` are neither written nor post-processed, for the reasons given. The graph (default: the
    offer's) has the constants by which layers multiply their weights. Raises a TraceError if nothing would be written.
    """
    source, kept = resolved.source, kept or {}
    names = [n for n in offer.roles if n not in kept]
    skipped = {n: reason for n, reason in {**offer.skipped, **kept}.items() if n not in names}
    if not names:
        raise TraceError(f"{name}: {source} has values for none of its parameters: {skipped}")
    computed = _computed(model, names, offer.graph or graph)
    plan = Plan(resolved, offer, names, skipped, 0, source.seed_or(seed), [], computed, (), unnormed, notes)
    plan = plan._replace(skipped={n: reason for n, reason in skipped.items() if n not in plan.companions})
    if plan.layer_scale is not None:
        scales = dict.fromkeys(layer_scales(model, {*kept, *plan.roles}), f"layer scale, set to {plan.layer_scale:g}")
        plan = plan._replace(scaled=tuple(scales), skipped=plan.skipped | scales)
    if not source.is_postprocessed:
        return plan
    layers = [f for f in layers_of(model) if offer.skipped.get(f.name) != NEUTRAL]
    if not layers and source.orth:
        return plan
    stay = _stay(model, offer.graph, layers)
    layer = source.layer
    if layer == "auto":
        layer = (
            1 if resolved.ghn is None else _auto_layer_of(plan, len(layers), sum(f.name not in stay for f in layers))
        )
    check_options(model, layer, plan.equations.beta)
    weights = {id(model.get_parameter(n)): n for n in names if offer.roles[n] == "weight"}
    start = layers[layer - 1].number if 0 < layer <= len(layers) else layer  # adapters are not counted
    found = to_process(model, start, stay)
    in_plan = [(f, weights[id(f.weight)]) for f in found if id(f.weight) in weights]
    changed = [f._replace(name=n, by=plan.computed.get(n, f.by), scale=_scale(plan, n, f)) for f, n in in_plan]
    left = [f.name for f in layers[layer - 1 :] if f.by is not None and not f.by.invertible and f.name in names]
    if left:
        _logger.warning(
            "%s: not post-processed, because a parametrisation without a right_inverse computes the weight: %s",
            name,
            ", ".join(left),
        )
    return plan._replace(layer=layer, changed=changed)


def _scale(plan: Plan, name: str, layer: Layer) -> float:
    return scale_of_orthogonal(layer.weight.shape) if name in plan.unnormed and plan.source.orthogonal else 1.0


def kept_parameters(
    model: nn.Module, name: str, only: Collection[str], skip: Collection[str], given: Mapping[str, str]
) -> dict[str, str]:
    """Parameters that keep their values whatever a source has for them -> why; `given` is as `Place.given_names`.

    Raises a ValueError if a pattern matches no parameter.
    """
    if not only and not skip:
        return {}
    by_id = {id(p): n for n, p in model.named_parameters()}
    known: dict[str, set[str]] = {n: {n, given.get(n, n)} for n in by_id.values()}
    for alias, p in model.named_parameters(remove_duplicate=False):
        known[by_id[id(p)]].add(alias)

    def matched(key: str, patterns: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for pattern in patterns:
            new = {n: pattern for n, names in known.items() if any(fnmatchcase(x, pattern) for x in names)}
            if not new:
                hint = f"; {pattern}.* matches all of a module" if "*" not in pattern else ""
                raise InputError(f"{name}: {key}={pattern} matches none of its parameters{hint}.")
            found |= new
        return found

    wanted, left = matched("only", only), matched("skip", skip)
    kept = {n: f"skip={pattern}" for n, pattern in left.items()}
    if only:
        kept |= {n: f"not in only={','.join(only)}" for n in known if n not in wanted}
    return with_companions(model, kept)


def _auto_layer_of(plan: Plan, n_layers: int, n_body: int) -> int:
    """The first layer that `layer=auto` stands for: one of the model's, however few it has."""
    if plan.resolved.ghn is None:
        return 1
    depth = plan.resolved.ghn.facts.depth_for(plan.graph.kind)
    # Counted as if there were one layer for the logits, so that a backbone does not depend on it.
    return min(auto_layer(_architecture(plan.graph), n_body + 1, depth), max(1, n_layers))


def auto_layer(architecture: str | None, n_layers: int, depth: float | None = None) -> int:
    """The layer L to start from when the user names none: the first one beyond `depth`.

    For a GHN without a depth it is the paper's tuned value where there is one (resnet50: 37 of 54 layers,
    convnext_base: 94 of 113), provided the model has the same number of layers. Otherwise it is the first of the last
    quarter of the layers, a guess that lies near the tuned values (69% and 83% of the depth).

    The architecture is a timm or torchvision name; a timm tag (`.fb_in1k`) is ignored. The depth is `GHN.depth`.
    """
    if depth is not None:
        return math.floor(depth * n_layers) + 1
    tuned_for, layer = _TUNED_LAYERS.get((architecture or "").partition(".")[0], (None, 0))
    return layer if tuned_for == n_layers else auto_layer(None, n_layers, _GUESS)


def _architecture(graph: Graph) -> str | None:
    """The name of one of the architectures that the authors tuned, whatever the model calls itself.

    It is known by the sizes of its operations, but for input channels and for what comes after the last block (pooling,
    norm, classifier). Neither the order of branches counts nor whether a linear layer is written as a convolution.
    """
    heads = {target.param for target in graph.targets.values() if target.classifier}
    nodes = enumerate(graph.nodes)
    body = {i for i, node in nodes if node.param not in heads and node.primitive not in _MAYBE_AFTER_THE_BODY}
    body |= {u for u, v in graph.edges.tolist() if v in body}
    operations = []
    for primitive, _, shape in (graph.nodes[i] for i in body):
        kernel = [int(s) for s in (shape or ())[2:] if s > 1]
        operations.append([primitive, [int(s) for s in (shape or ())[:1]] + kernel])
    return _KNOWN_GRAPHS.get(hashlib.sha256(repr(sorted(operations)).encode()).hexdigest()[:16])


def _stay(model: nn.Module, graph: Graph | None, layers: Sequence[Layer]) -> set[str]:
    """Names of the weights that post-processing leaves although they are predicted: those that yield the logits.

    If a model does not declare its classifier and none is found, the last layer counts as one if it ends the graph,
    but for a pooling (SqueezeNet's convolution). Without a graph it is the last layer.
    """
    if graph is None:
        return {layer.name for layer in layers[-1:]}
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


def _computed(model: nn.Module, names: Sequence[str], graph: Graph | None) -> dict[str, Computed]:
    scales = {n: graph.targets[n].scale for n in names if n in graph.targets} if graph is not None else {}
    computed: dict[str, Computed] = {
        n: Scaled(n, model.get_parameter(n), scale) for n, scale in scales.items() if scale != 1
    }
    found = ((list(by.parameters), by) for by in parametrised(model) if by.invertible)
    return computed | {parameters[-1]: by for parameters, by in found if parameters and parameters[-1] in names}
