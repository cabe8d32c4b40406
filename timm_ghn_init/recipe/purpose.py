"""Parameters that a constructor set on purpose: a prediction would destroy what they stand for, so they are kept.

Three kinds of parameters are kept, and the report gives the reason for each:

* frozen parameters (`requires_grad=False`): nothing could repair them later;
* values that no random initialisation draws: weights of zero, priors, gates, tables, filters, identities. A bias goes
  with its layer's weight. Norm weights of one and biases of zero are ordinary;
* layers of a head, where a network yields something other than logits, as far as no norm follows them. The size of
  their outputs is that of their weights, so a loss that the constructor has prepared for would explode (detectors,
  segmentation).

Values are read from a small sample of each parameter, and in full only where the sample calls for it.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..graph import Graph
from ..graph.classifier import declared_classifier, is_residual
from .assign import unwritable
from .layer_scale import layer_scales
from .parametrised import with_companions

FROZEN = "frozen by the model (requires_grad=False); only= predicts it all the same"
ZERO = "set to zero by the constructor"
CONSTANT = "set to a constant by the constructor (a prior or a gate)"
TABLE = "a table, filter or identity: values that no random initialisation draws"
OF_A_KEPT_LAYER = "the weight of its layer is kept"
HEAD = "in the head of a network that is no classifier, and no norm follows"

_ALL = 4096  # values up to which a vector is read whole
_BLOCK = 16  # rows and columns that are read of anything else
_STRIDED = 64  # values that are read from all over it
_NORMS = ("bn", "ln")
_LAYERS = ("conv", "sep_conv", "dil_conv")


class Purpose(NamedTuple):
    """What is kept, and what the report has to say besides."""

    kept: dict[str, str]  #: name -> reason
    notes: tuple[str, ...]  #: sentences


def find_purpose(
    model: nn.Module,
    roles: Mapping[str, str],
    values: Mapping[str, Tensor],
    graph: Callable[[], Graph | None] = lambda: None,
    only: Collection[str] = (),
) -> Purpose:
    """What of the parameters that are about to be written should be kept.

    Args:
        model: its own values are not read, so it may be on the meta device.
        roles: as in `InitReport.predicted`, of the parameters that are about to be written.
        values: as of `set_values`.
        graph: of the model; without one no head is recognised. Called where the model does not declare a classifier.
        only: patterns by which the user has asked for these parameters. Frozen ones are then written as well, and what
            a pattern spells out in full whatever its values are.

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
    samples = _samples({n: values[n] for n in roles if n in values and n not in kept and n not in before})
    weights = _weights_of_biases(parameters)
    reasons: dict[str, str] = {}
    for name, sample in samples.items():
        of = parameters.get(weights.get(name, ""))
        vector = parameters[name].numel() == max(parameters[name].shape, default=1)
        reason = _reason(sample, roles[name], values[name], vector, None if of is None else of.shape)
        reasons |= {} if reason is None else {name: reason}
    if not _have_no_meaning({n: values[n].numel() for n in samples if roles[n] == "weight"}, reasons):
        kept |= reasons
    zero_norms = sum(roles[n] == "norm" and not sample.block.any() for n, sample in samples.items())
    found = graph() if declared_classifier(model, {}, None) is None else None
    kept |= {n: HEAD for n in (_heads(found) if found is not None else ()) if n in roles and n not in kept}
    kept |= {n: OF_A_KEPT_LAYER for n in roles if n not in kept and weights.get(n) in kept}
    kept = with_companions(model, kept)
    return Purpose({n: reason for n, reason in kept.items() if n not in only}, _notes(model, zero_norms))


def _notes(model: nn.Module, zero_norms: int) -> tuple[str, ...]:
    notes = []
    if zero_norms:
        notes.append(f"{zero_norms} norm weights that started at zero (branches that were off) are initialised as well")
    norms = [n for n, m in model.named_modules() if _is_batch_norm(m) and not m.training]
    if norms and len(norms) == sum(map(_is_batch_norm, model.modules())):
        notes.append("batch norms are in eval mode: they scale nothing until they have seen batches in training mode")
    return tuple(notes)


def fixed_norms(model: nn.Module) -> list[str]:
    """Names of the batch norms that will not learn the statistics of features: they do not norm what is predicted.

    They are frozen modules, or in eval mode inside of a model in training mode.
    """
    found = []
    for name, module in model.named_modules():
        frozen = "frozen" in type(module).__name__.lower() and "running_var" in module._buffers
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
        report = module.__dict__.get("ghn_report")
        prefix = f"{path}." if path else ""
        found |= {prefix + name for name in getattr(report, "predicted", ())}
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


# -- values ------------------------------------------------------------------------------------------------------------


class _Sample(NamedTuple):
    """Some values of a parameter, in float64 on the CPU."""

    block: Tensor  #: (rows, columns) of its beginning; (1, n) of a vector
    strided: Tensor  #: (n,) from all over it

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """Values that are different ones, if they are drawn."""
        return (self.block.flatten(), self.strided)


@torch.no_grad()
def _samples(values: Mapping[str, Tensor]) -> dict[str, _Sample]:
    """Samples of several parameters, by one copy for each device."""
    pieces: dict[torch.device, list[tuple[str, Tensor, Tensor]]] = defaultdict(list)
    for name, value in values.items():
        if value.numel() and value.is_floating_point() and unwritable(value) is None:
            value = value.detach()
            pieces[value.device].append((name, _beginning(value), _from_all_over(value)))
    found = {}
    for parts in pieces.values():
        flat = torch.cat([piece.flatten().float() for _, *both in parts for piece in both]).cpu().double()
        split = iter(flat.split([piece.numel() for _, *both in parts for piece in both]))
        for name, block, _ in parts:
            found[name] = _Sample(next(split).view(block.shape), next(split))
    return found


def _beginning(value: Tensor) -> Tensor:
    if value.numel() == max(value.shape, default=1):
        return value.reshape(1, -1)[:, :_ALL]
    while value.dim() > 2 and len(value) == 1:
        value = value[0]
    rows = value[:_BLOCK]
    return rows.reshape(len(rows), -1)[:, :_BLOCK]


def _from_all_over(value: Tensor) -> Tensor:
    count = min(_STRIDED, value.numel())
    places = torch.linspace(0, value.numel() - 1, count, dtype=torch.float64, device=value.device).long()
    index = torch.unravel_index(places, value.shape)
    return value[index] if value.dim() else value.reshape(1)


def _reason(sample: _Sample, role: str, value: Tensor, vector: bool, layer: torch.Size | None) -> str | None:
    """Why values are no random draw; None if they may be one, or are ordinary for their role."""
    block, coarse = sample.block, value.element_size() < 4
    if not any(part.any() for part in sample.parts):
        return ZERO if role == "weight" and not vector and not value.any() else None
    if role == "norm" and bool((block == 1).all()):
        return None
    if role in ("bias", "norm") or vector:
        return _reason_of_vector(block.flatten(), layer if role == "bias" else None, coarse)
    if any(_repeats(part, coarse) or _has_zeros(part) for part in sample.parts) or _is_smooth(block):
        return TABLE
    return None


def _reason_of_vector(x: Tensor, layer: torch.Size | None, coarse: bool) -> str | None:
    rest = x[x != 0]
    if len(x) > 3 and _is_regular(x):
        return TABLE
    if len(x) > 1 and (_has_zeros(x) or (len(rest) > 1 and _repeats(rest, coarse))):
        return CONSTANT
    if layer is None:
        return None
    bound = 1 / math.sqrt(max(1, math.prod(layer[1:])))  # of PyTorch's own biases
    far = float(x.abs().min()) > max(2 * bound, 0.1)
    return CONSTANT if far or (len(x) >= _BLOCK and float(x.mean().abs()) > 2 * float(x.std())) else None


def _repeats(x: Tensor, coarse: bool) -> bool:
    """Whether few absolute values are different ones: those of a draw hardly ever repeat, but in 16 bits (`coarse`)."""
    scale = x.abs().max()
    most = max(1, len(x) // (16 if coarse else 2))
    return len(x) > 1 and len((x.abs() / scale).mul(1e5).round().unique()) <= most


def _has_zeros(x: Tensor) -> bool:
    return 8 * int((x == 0).sum()) > len(x)


def _is_regular(x: Tensor) -> bool:
    steps = x.diff()
    largest = float(steps.abs().max())
    return largest > 0 and float(steps.diff().abs().max()) < 0.05 * largest


def _is_smooth(block: Tensor) -> bool:
    """Whether neighbours along rows or columns are nearly the same, as in tables of sines and cosines."""
    z = block - block.mean()
    power = z.square().mean()
    if block.numel() < 128 or not power > 0:
        return False
    pairs = [(z[1:] * z[:-1]) if len(z) > 2 else None, (z[:, 1:] * z[:, :-1]) if z.shape[1] > 2 else None]
    return any(float(pair.mean() / power) > 0.8 for pair in pairs if pair is not None)


# -- heads -------------------------------------------------------------------------------------------------------------


def _heads(graph: Graph) -> set[str]:
    """Parameters of the layers between the last norms and the outputs that are no logits.

    Of a network that has no norm before an output it is the last layer: the size of everything in it follows from all
    of its weights. A single output that is averaged over the image is logits (SqueezeNet), or features.
    """
    before = _sources(graph)
    classifiers = {t.node for t in graph.targets.values() if t.classifier}
    nodes: set[int] = set()
    sinks = set(range(len(graph.nodes))) - {u for u, _ in graph.edges.tolist()}
    if [graph.nodes[sink].primitive for sink in sinks] == ["glob_avg"]:
        return set()
    for sink in sinks:
        layers, normed = _unnormed(graph, before, sink)
        if not layers & classifiers:
            nodes |= layers if normed else _last(graph, before, sink)
    return {t.param for t in graph.targets.values() if t.node in nodes}


def _sources(graph: Graph) -> Mapping[int, list[int]]:
    before = defaultdict[int, list[int]](list)
    for u, v in graph.edges.tolist():
        before[v].append(u)
    return before


def _unnormed(graph: Graph, before: Mapping[int, list[int]], sink: int) -> tuple[set[int], bool]:
    """Layers and biases from which an output is reached without a norm or a residual; whether one comes before."""
    found, stack, normed = set[int](), [sink], False
    while stack:
        node = stack.pop()
        if node in found:
            continue
        primitive = graph.nodes[node].primitive
        if primitive in _NORMS or (primitive == "sum" and is_residual(before[node], before)):
            normed = True
            continue
        found.add(node)
        stack += before[node]
    return found, normed


def _last(graph: Graph, before: Mapping[int, list[int]], sink: int) -> set[int]:
    """The last layers before an output, and their biases."""
    found, stack = set[int](), [sink]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += () if graph.nodes[node].primitive in _LAYERS else before[node]
    return found
