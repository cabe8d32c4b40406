"""What will be done to a model, settled before anything is written."""

from typing import NamedTuple

from torch import nn

from ..ghn import GHN
from ..graph import Graph, TraceError
from ..sources import Source
from ..weights.key import weights_key
from .postprocessing import auto_layer, list_layers, to_process
from .resolved import Resolved


class Plan(NamedTuple):
    """What is predicted and post-processed in a model: all that the steps after it go by.

    Attributes:
        resolved: what predicts.
        graph: of the model.
        names: parameters to predict.
        skipped: the others -> why not.
        layer: the first to post-process, counted from 1; 0 without post-processing.
        seed: of the post-processing's noise.
        changed: names of the weights to post-process.
        rest: those of `changed` whose result follows from the model's own values as well.
    """

    resolved: Resolved
    graph: Graph
    names: list[str]
    skipped: dict[str, str]
    layer: int
    seed: int
    changed: list[str]
    rest: list[str]

    @property
    def final(self) -> list[str]:
        """Those of `changed` whose result follows from the prediction alone."""
        return [name for name in self.changed if name not in self.rest]

    @property
    def source(self) -> Source:
        """The source that is really used."""
        return self.resolved.source

    def key(self, model: nn.Module, ghn: str) -> str:
        """As `weights_key`, for the GHN with this `ghn_digest`."""
        return weights_key(model, ghn, self.graph, self.names, self.source, self.layer, self.seed, self.changed)


def make_plan(model: nn.Module, name: str, graph: Graph, resolved: Resolved, seed: int | None) -> Plan:
    """Work out what a source does to a model, whose values do not matter: it may be on the meta device.

    Args:
        name: of the model; the default of `layer` depends on it.
        seed: as in `init_model`.

    Raises:
        TraceError: nothing would be predicted.
    """
    source = resolved.source
    names, skipped = _choose(graph, resolved.ghn, source)
    if not names:
        raise TraceError(f"{name}: {source} predicts none of its parameters: {skipped}")
    seed = source.seed_or(seed)
    if not source.orth:
        return Plan(resolved, graph, names, skipped, 0, seed, [], [])
    layer = auto_layer(name, len(list_layers(model)), resolved.ghn.depth) if source.layer == "auto" else source.layer
    changed = to_process(model, layer)
    predicted = {id(model.get_parameter(n)) for n in names if graph.targets[n].whole}
    rest = [t.name for t in changed if id(t.weight) not in predicted]
    return Plan(resolved, graph, names, skipped, layer, seed, [t.name for t in changed], rest)


def _choose(graph: Graph, ghn: GHN, source: Source) -> tuple[list[str], dict[str, str]]:
    """Names to predict, and why not the others: a classifier, for instance, of other classes than the GHN's."""
    names, skipped = [], dict(graph.skipped)
    for target in graph.targets.values():
        if not target.classifier:
            names.append(target.param)
        elif not source.classifier:
            skipped[target.param] = "classifier, left alone by classifier=0"
        elif target.shape[0] != ghn.num_classes:
            skipped[target.param] = f"classifier of {target.shape[0]} classes, the GHN predicts {ghn.num_classes}"
        else:
            names.append(target.param)
    return names, skipped
