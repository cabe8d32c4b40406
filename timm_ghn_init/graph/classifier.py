"""Which layers yield the logits."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from torch.utils._pytree import tree_leaves

from .graph import Node
from .inputs import attribute, unwrapping

_POOLS = ("glob_avg", "avg_pool", "max_pool")
_MERGES = ("sum", "concat")
# Outputs that are known by their name.
_LOGITS = re.compile("logit", re.IGNORECASE)
_FEATURES = re.compile("embed|feat|hidden|pool|proj", re.IGNORECASE)


class Output(NamedTuple):
    """A tensor among a model's outputs."""

    name: str  # the path of keys to it
    shape: tuple[int, ...]
    nodes: tuple[int, ...]  # that it comes from
    activated: bool  # whether it has been through a ReLU, a norm or the like since then
    attention: str  # "scores" if it compares features with features


def declared_classifier(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], names: Iterable[str] | None
) -> set[str] | None:
    """Parameters of the classification layers as far as the model (or the caller) declares them; None: not at all.

    Args:
        model: with timm's `get_classifier()`, or a wrapper of such a model.
        parameters: all of the model's, by name.
        names: of the modules that the caller declares.
    """
    if names is not None:
        heads: list[Any] = [model.get_submodule(n) for n in names]
    else:
        getters = [get for m in unwrapping(model) if callable(get := attribute(m, "get_classifier"))]
        if not getters:
            return None
        heads = [h for h in tree_leaves(getters[0]()) if isinstance(h, nn.Module)]
    owned = {id(p) for head in heads for p in head.parameters()}
    return {name for name, p in parameters.items() if id(p) in owned}


def last_of(heads: Collection[str], nodes: Sequence[Node], edges: np.ndarray) -> set[str]:
    """From the parameters that are declared as the classifier's those of its last layers: hidden ones are ordinary."""
    followed = [False] * len(nodes)  # by another of its layers
    for u, v in sorted(edges.tolist(), reverse=True):  # nodes are in topological order
        followed[u] |= followed[v] or (nodes[v].primitive == "conv" and nodes[v].param in heads)
    return set(heads) - {node.param for node, f in zip(nodes, followed, strict=True) if f}


def by_place(
    outputs: Sequence[Output],
    batch: int | None,
    nodes: Sequence[Node],
    edges: np.ndarray,
    channels: Sequence[int | None],
) -> set[str]:
    """Weights and biases of the layers that yield the logits, as far as their place in the graph tells.

    Logits are a matrix. A layer yields them if nothing follows but a sum or a concatenation with other such layers, a
    softmax, a scale, or (for a linear layer) pooling over patches or time. An activation makes features of them.

    Args:
        outputs: of the model.
        batch: how many images went in, None where that is not known.
        nodes, edges: the graph.
        channels: that each node puts out, None where that is not known.
    """
    before = defaultdict[int, list[int]](list)
    for u, v in edges.tolist():
        before[v].append(u)

    behind = _Behind(nodes, before)
    heads: set[str] = set()
    for output in _logits(outputs, batch, inner={u for u, _ in edges.tolist()}):
        classes, found = output.shape[-1], []
        for layers in map(behind.layers, output.nodes):
            if layers and _add_up([channels[i] for i in layers if nodes[i].primitive == "conv"], classes):
                found.append(layers)
        fitting = [layers for layers in found if {channels[i] for i in layers} == {classes}]
        heads |= {nodes[i].param for layers in fitting or found for i in layers}
    return heads


class _Behind:
    """Which layers a node is or merges, whatever their number: networks can have hundreds of heads."""

    def __init__(self, nodes: Sequence[Node], before: Mapping[int, list[int]]) -> None:
        self._nodes, self._before = nodes, before
        self._known: dict[tuple[int, bool], frozenset[int] | None] = {}

    def layers(self, node: int) -> frozenset[int] | None:
        """The layers that a node is or merges, None if it is anything else."""
        stack = [(node, False)]
        while stack:
            own, sources = self._parts(*stack[-1])
            unknown = [source for source in sources if source not in self._known]
            if unknown:
                stack += unknown
                continue
            found = [own, *(self._known[source] for source in sources)]
            known = [layers for layers in found if layers is not None]
            self._known[stack.pop()] = frozenset().union(*known) if len(known) == len(found) else None
        return self._known[node, False]

    @cache  # noqa: B019  # as long as the graph is looked at
    def _parts(self, node: int, pooled: bool) -> tuple[frozenset[int] | None, list[tuple[int, bool]]]:
        """The layers that a node is itself, None if it merges none, and the nodes that count as it does."""
        primitive, _, shape = self._nodes[node]
        if primitive == "conv":
            return frozenset((node,)) if not pooled or (shape is not None and len(shape) == 2) else None, []
        sources = self._before[node]
        if primitive == "bias":
            weights = [w for w in sources if self._nodes[w].primitive == "conv"]
            return (frozenset((node,)), [(w, pooled) for w in weights]) if weights or not pooled else (None, [])
        if primitive not in (*_POOLS, *_MERGES) or is_residual(sources, self._before):
            return None, []
        return frozenset(), [(source, pooled or primitive in _POOLS) for source in sources]


def _add_up(channels: Sequence[int | None], classes: int) -> bool:
    """Whether layers of so many channels can be summed or joined to so many logits.

    Others were averaged over their channels, or have some for each position.
    """
    known = [c for c in channels if c is not None]
    return len(known) < len(channels) or (max(known, default=0) <= classes and sum(known) % classes == 0)


def is_residual(sources: Collection[int], before: Mapping[int, list[int]]) -> bool:
    """Whether one of the sources comes from another."""
    seen: set[int] = set()
    stack = [u for source in sources for u in before.get(source, ())]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(before.get(node, ()))
    return not seen.isdisjoint(sources)


def _logits(outputs: Sequence[Output], batch: int | None, inner: Collection[int]) -> list[Output]:
    """The outputs that are logits: by their name, or else matrices of one row for each image that lead nowhere.

    In a list of images (`batch` is None), each has a row, or a vector, of its own.
    """
    matrices = [o for o in outputs if all(o.shape)]
    matrices = [o for o in matrices if len(o.shape) == 2 or (batch is None and len(o.shape) == 1)]
    chosen = [o for o in matrices if _LOGITS.search(o.name)]
    if not chosen:
        chosen = [o for o in matrices if not _FEATURES.search(o.name)]
        chosen = [o for o in chosen if not any(node in inner for node in o.nodes)]
        if len(outputs) > 1:
            chosen = [o for o in chosen if len(o.shape) == 1 or o.shape[0] == (batch or 1)]
    return [o for o in chosen if not o.activated and o.attention != "scores"]
