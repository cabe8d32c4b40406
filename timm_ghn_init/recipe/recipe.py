"""The recipe: plan, check, compute, post-process, write, report, whatever the source.

Nothing is written before all is computed. A `Place` tells the recipe about a model's memory.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ..ghn import Tile
from ..graph import Dialect, Graph, TraceError
from ..report import InitReport
from ..utils.checks import InputError
from ..utils.text import logger
from . import assign
from .exact import exact
from .finished import Finished
from .offer import Offer, given, predicted
from .options import Options
from .place import Place
from .plan import Plan, kept_parameters, make_plan
from .postprocessing import unprocessable
from .purpose import find_purpose, fixed_norms
from .resolved import Resolved

_logger = logger(__name__)


def initialise(place: Place, resolved: Sequence[Resolved], options: Options) -> InitReport:
    """Initialise a model with what sources have for it. Raises as `init_model` does; the model is then as it was.

    Args:
        resolved: the parts of the source, of which only the first may have a GHN. Values of a later one count.
    """
    run = _Run(place, options)
    try:
        plans = place.together("plan and checks", lambda: run.plan(resolved), lambda plans: _in_common(place, plans[0]))
        finished = Finished(place, plans)
        place.together("memory", lambda: place.give_memory([n for plan in plans for n in plan.whole]))
        run.set_scales(plans)
        finished.fill(lambda: run.compute_and_write(plans), run.results)
    except BaseException:
        place.take_back()
        raise
    return _report(place, plans, finished)


def plan(place: Place, resolved: Sequence[Resolved], options: Options) -> list[Plan]:
    """What `initialise` would do: a plan for each part of the source. Nothing is written."""
    return _Run(place, options).plan(resolved)


class _Run:
    """One initialisation: the graphs and values that its steps share.

    Attributes:
        results: values that wait until all of them are there, by the names of parameters and buffers.
    """

    def __init__(self, place: Place, options: Options) -> None:
        self._place, self._options = place, options
        self._graphs: dict[Dialect, Graph] = {}
        self._traceable = True
        self.results: dict[str, Tensor] = {}

    def plan(self, resolved: Sequence[Resolved]) -> list[Plan]:
        """A plan for each part of the source, all of them checked."""
        plans: list[Plan] = []
        for part in resolved:
            new = self._plan_part(part)
            plans = [*(earlier.without(new.written) for earlier in plans), new]
        for each in plans:
            _check(self._place, each)
        _warn_of_fixed_norms(self._place)
        return plans

    def _plan_part(self, part: Resolved) -> Plan:
        place, options = self._place, self._options
        only, skip = options.only or part.source.only, options.skip or part.source.skip
        kept = kept_parameters(place.model, place.name, only, skip, place.given_names)
        offer = self._offer(part, kept)
        roles = {n: role for n, role in offer.roles.items() if n not in kept}
        values = place.values(list(roles))
        purpose = find_purpose(place.model, roles, values, self._graph_if_any, only)
        on_purpose = place.agreed(purpose.kept, values)
        for name in on_purpose:
            self.results.pop(name, None)
        graph = self._graph_if_any() if part.effective else None
        return make_plan(
            place.model, place.name, offer, part, options.seed, {**kept, **on_purpose}, purpose.notes, graph
        )

    def _offer(self, part: Resolved, kept: Mapping[str, str]) -> Offer:
        place = self._place
        if part.ghn is not None:
            return predicted(self._graph(part.ghn.dialect), part.ghn.num_classes, part.source)
        place.clock("own", place.give_values)
        function, seed = part.function, part.source.seed_or(self._options.seed)
        if part.needs_graph:
            function = partial(function, graph=self._graph("ghn2"))
        draw = partial(given, place.model, place.name, part.source, function, seed, kept, self.results, part.cache)
        with exact(place.device):
            return place.clock("draw", draw)

    def _graph(self, dialect: Dialect) -> Graph:
        if dialect not in self._graphs:
            place, options = self._place, self._options
            trace = partial(place.trace, dialect, options.input_size, options.example_inputs)
            self._graphs[dialect] = place.clock("trace", trace)
        return self._graphs[dialect]

    def _graph_if_any(self) -> Graph | None:
        """The graph for a source that can do without; None of a model that cannot be traced, which is tried once."""
        if not self._graphs and self._traceable:
            try:
                self._graph("ghn2")
            except TraceError:
                self._traceable = False
        return next(iter(self._graphs.values()), None)

    def set_scales(self, plans: Sequence[Plan]) -> None:
        """The values of layer scales."""
        for plan in plans:
            for name in plan.scaled:
                part = self._place.part(self._place.model.get_parameter(name))
                self.results[name] = torch.full(part.shape, plan.layer_scale or 0.0, dtype=part.dtype)

    def compute_and_write(self, plans: Sequence[Plan]) -> None:
        """Predict (the values of functions are there already), post-process, write."""
        place, results = self._place, self.results
        tiles = place.together("prediction", lambda: self._predict(plans[0]))
        with exact(place.device):
            for plan in plans:
                if plan.changed:  # Section 3 of the paper
                    post = partial(place.postprocess, plan, tiles, results, self._options.progress)
                    place.clock("postprocess", post)
                assign.invert(plan.computed, {layer.name for layer in plan.changed}, tiles, results)
        with assign.uninterrupted():
            place.clock("write", lambda: place.write(tiles, results))

    def _predict(self, plan: Plan) -> dict[str, Tile]:
        """Section 2 of the paper."""
        ghn, place = plan.resolved.ghn, self._place
        if ghn is None or not plan.names:
            return {}
        with exact(place.device):
            z = place.clock("embed", lambda: ghn.embed(plan.graph))
            tiles = place.clock("decode", lambda: ghn.decode(plan.graph, z, plan.names))
            assign.check_finite(tiles, f"{place.name}, {plan.source}")
        return tiles


def _warn_of_fixed_norms(place: Place) -> None:
    fixed = fixed_norms(place.model)
    if fixed and place.first:
        _logger.warning(
            "%s: %d batch norms are frozen (%s ...). They do not norm what is predicted, so features may grow from "
            "layer to layer. Initialise the model before freezing them, run some batches in training mode in between, "
            "or leave the layers before them out (skip=).",
            place.name,
            len(fixed),
            fixed[0],
        )


def _check(place: Place, plan: Plan) -> None:
    """Whatever would keep a parameter from being written is found before anything is."""
    for name, by in plan.computed.items():
        if not place.whole:
            raise InputError(
                f"{place.name}: {by.name} is computed from {name}. Initialise the model before sharding it."
            )
    # The classifier too, whatever classes the GHN has.
    heads = [] if plan.offer.graph is None else [n for n, t in plan.graph.targets.items() if t.classifier]
    for name in dict.fromkeys((*plan.written, *plan.scaled, *heads)):
        parameter = place.parameters[name] if name in place.parameters else place.model.get_parameter(name)
        problem = assign.unwritable(place.part(parameter))
        if problem:
            raise InputError(f"{place.name}: {name} {problem} Nothing was changed.")
    for layer in plan.changed:
        problem = unprocessable(layer.weight)
        if problem:
            raise InputError(f"{place.name}: {layer.name} {problem}")


def _in_common(place: Place, plan: Plan) -> dict[str, str]:
    """The facts that all ranks that work on a model must share. After sharing, they have the same GHN."""
    resolved = plan.resolved
    return {
        "source": str(resolved.asked.prediction),
        "model": place.name,
        "seed": str(plan.seed),
        "plan (graph, shapes, dtypes, GHN)": plan.key(place.model, resolved.digest if resolved.own else ""),
    }


def _report(place: Place, plans: Sequence[Plan], finished: Finished) -> InitReport:
    graph = next((plan.offer.graph for plan in plans if plan.offer.graph), None)
    roles = {name: role for plan in plans for name, role in plan.roles.items()}
    skipped = {name: reason for plan in reversed(plans) for name, reason in plan.skipped.items() if name not in roles}
    postprocessed = [plan for plan in plans if plan.layer]
    return InitReport(
        model=place.name,
        source="+".join(str(plan.source) for plan in plans),
        device=str(place.device if graph or postprocessed else "cpu"),
        nodes=len(graph.nodes) if graph else 0,
        edges=len(graph.edges) if graph else 0,
        predicted=roles,
        skipped=skipped,
        sizes={n: p.numel() for n, p in place.parameters.items()},
        layer=postprocessed[0].layer if postprocessed else None,
        postprocessed=tuple(layer.name for plan in plans for layer in plan.changed),
        seed=next((plan.seed for plan in plans if plan.layer or plan.offer.graph is None), None),
        seconds=place.clock.seconds,
        cached=finished.cached or any(plan.offer.cached for plan in plans),
        key=finished.key,
        hub=finished.repo,
        downloaded=finished.downloaded,
        own=place.own,
        unset=place.unset,
        parts={n: str(plan.source) for plan in plans for n in plan.written} if len(plans) > 1 else {},
        notes=tuple(dict.fromkeys(note for plan in plans for note in plan.notes)),
    )
