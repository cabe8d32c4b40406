"""Parameters that a constructor set on purpose: a prediction would destroy what they stand for, so they are kept.

Three kinds of parameters are kept, and the report gives the reason for each:

* frozen parameters (`requires_grad=False`): nothing could repair them later;
* values that no random initialisation draws: weights of zero, priors, gates, tables, filters, identities. A bias goes
  with its layer's weight. Norm weights of one and biases of zero are ordinary;
* layers of a head, where a network yields something other than logits, as far as no norm follows them. The size of
  their outputs is that of their weights, so a loss that the constructor has prepared for would explode (detectors,
  segmentation).
"""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from ..graph import Graph
from ..graph.classifier import declared_classifier, is_residual
from ..graph.graph import reached
from .layer_scale import layer_scales
from .parametrised import with_companions
from .unnormed import BIAS
from .unusual import Suspect, unusual

FROZEN = "frozen by the model (requires_grad=False); only= predicts it all the same"
OF_A_KEPT_LAYER = "the weight of its layer is kept"
HEAD = "in the head of a network that is no classifier, and no norm follows"

_NORMS = ("bn", "ln")
_LAYERS = ("conv", "sep_conv", "dil_conv")


class Purpose(NamedTuple):
    """The parameters to keep, those whose size matters, and notes for the report."""

    kept: dict[str, str]  #: name -> reason
    unnormed: tuple[str, ...]  #: weights with no norm behind them, see `unnormed.py`
    notes: tuple[str, ...]  #: sentences


def find_purpose(
    model: nn.Module,
    roles: Mapping[str, str],
    values: Mapping[str, Tensor],
    graph: Callable[[], Graph | None] = lambda: None,
    only: Collection[str] = (),
    predicted: bool = True,
) -> Purpose:
    """Find the parameters that should be kept, of those that are about to be written.

    Args:
        model: its own values are not read, so it may be on the meta device.
        roles: as in `InitReport.predicted`, of the parameters that are about to be written.
        values: as of `set_values`.
        graph: of the model; without one no head is recognised. Called where the model declares neither a classifier
            nor that it gives features.
        only: patterns by which the user has asked for these parameters. Frozen ones are then written as well, and what
            a pattern spells out in full whatever its values are.
        predicted: whether a GHN predicts the values. Their size matters where no norm follows, see `unnormed.py`.

    Example:
        >>> head = nn.Linear(64, 80)
        >>> _ = nn.init.constant_(head.bias, -4.6)
        >>> find_purpose(head, {"weight": "weight", "bias": "bias"}, dict(head.named_parameters())).kept
        {'bias': 'set to a constant by the constructor (a prior or a gate)'}
    """
    parameters = dict(model.named_parameters())
    frozen = {n for n, p in parameters.items() if p.is_floating_point() and not p.requires_grad}
    kept = {} if only else dict.fromkeys((n for n in parameters if n in frozen), FROZEN)
    before = _predicted_before(model) | set(layer_scales(model, ()))  # a source for these means to set them
    weights = _weights_of_biases(parameters)
    suspects = [
        Suspect(n, roles[n], values[n], parameters[weights[n]].shape if n in weights else None)
        for n in roles
        if n in values and n not in kept and n not in before
    ]
    reasons, zero_norms = unusual(suspects)
    if not _have_no_meaning({s.name: s.value.numel() for s in suspects if s.role == "weight"}, reasons):
        kept |= {n: reasons[n] for n in roles if n in reasons}
    # A backbone of timm (`features_only`) gets what the whole network gets.
    is_known = hasattr(model, "feature_info") or declared_classifier(model, {}, None) is not None
    found = None if is_known else graph()
    heads, unnormed = (set(), set()) if found is None else _heads(found)
    kept |= {n: HEAD for n in roles if n in heads and n not in kept}
    in_question = [n for n in roles if n in unnormed] if predicted else []
    kept |= {n: BIAS for n in in_question if roles[n] == "bias" and n not in kept}
    kept |= {n: OF_A_KEPT_LAYER for n in roles if n not in kept and weights.get(n) in kept}
    kept = {n: reason for n, reason in with_companions(model, kept).items() if n not in only}
    scaled = tuple(n for n in in_question if roles[n] == "weight" and n not in kept)
    return Purpose(kept, scaled, _notes(model, zero_norms))


def _notes(model: nn.Module, zero_norms: int) -> tuple[str, ...]:
    notes = []
    if zero_norms:
        notes.append(f"{zero_norms} norm weights that started at zero (branches that were off) are initialised as well")
    norms = [m for m in model.modules() if _is_batch_norm(m)]
    if norms and not any(m.training for m in norms):
        notes.append("batch norms are in eval mode: they scale nothing until they have seen batches in training mode")
    return tuple(notes)


def fixed_norms(model: nn.Module) -> list[str]:
    """Names of the batch norms that will not learn the statistics of features: they do not norm what is predicted.

    They are frozen modules, or in eval mode inside of a model in training mode.
    """
    found = []
    for name, module in model.named_modules():
        frozen = "running_var" in module._buffers and "frozen" in type(module).__name__.lower()
        if frozen or (_is_batch_norm(module) and model.training and not module.training):
            found.append(name)
    return found


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats


def _have_no_meaning(weights: Mapping[str, int], reasons: Mapping[str, str]) -> bool:
    """Whether nearly all weights (name -> number of values) look as if they were set: by `to_empty`, for instance."""
    return len(weights) > 3 and sum(n for name, n in weights.items() if name in reasons) > 0.9 * sum(weights.values())


def _predicted_before(model: nn.Module) -> set[str]:
    """Names of parameters whose values come from an earlier initialisation: they are nobody's purpose."""
    found: set[str] = set()
    for path, module in model.named_modules():
        if (report := module.__dict__.get("ghn_report")) is not None:
            found |= {f"{path}.{name}".lstrip(".") for name in getattr(report, "predicted", ())}
    return found


def _weights_of_biases(names: Collection[str]) -> dict[str, str]:
    """The weight of the same layer for each bias, by name: `bias` and `weight`, `bias_ih_l0` and `weight_ih_l0`."""
    pairs = {}
    for name in names:
        path, dot, last = name.rpartition(".")
        weight = path + dot + last.replace("bias", "weight")
        if weight != name and weight in names:
            pairs[name] = weight
    return pairs


# -- heads -------------------------------------------------------------------------------------------------------------


def _heads(graph: Graph) -> tuple[set[str], set[str]]:
    """The heads of outputs that are no logits, and all layers with no norm behind them; names of their parameters.

    A head is what follows the last norms or residual sums. Where the input gets there without passing one, it is the
    last layer. A single output that is averaged over the image is logits (SqueezeNet), or features.
    """
    before, after = graph.neighbours()
    primitives = [node.primitive for node in graph.nodes]
    classifiers = {t.node for t in graph.targets.values() if t.classifier}
    sinks = [node for node, following in after.items() if not following]
    if [primitives[sink] for sink in sinks] == ["glob_avg"]:
        return set(), set()

    def is_normed(node: int) -> bool:
        return primitives[node] in _NORMS or (primitives[node] == "sum" and is_residual(before[node], before))

    heads: set[int] = set()
    unnormed: set[int] = set()
    for sink in sinks:
        layers, norms = reached([sink], before, is_normed)
        if not layers & classifiers:
            last = set[int]().union(*reached([sink], before, lambda node: primitives[node] in _LAYERS))
            heads |= layers if norms and 0 not in layers else last
            unnormed |= reached([sink], before, lambda node: primitives[node] in _NORMS)[0]
    kept, resized = ({t.param for t in graph.targets.values() if t.node in nodes} for nodes in (heads, unnormed))
    return kept, resized
