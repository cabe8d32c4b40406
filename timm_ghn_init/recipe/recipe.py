"""The recipe: plan, check, compute, post-process, write, report, whatever the source.

Nothing is written before all is computed. What the recipe needs to know of a model's memory is a `Place`.
"""

from collections.abc import Mapping

import torch

from ..ghn import Tile
from ..report import InitReport
from ..utils.checks import InputError
from . import assign
from .exact import exact
from .finished import Finished
from .offer import Offer, given, predicted
from .options import Options
from .pending import Pending
from .place import Place
from .plan import Plan, kept_parameters, make_plan
from .postprocessing import unprocessable
from .resolved import Resolved


def initialise(place: Place, resolved: Resolved, options: Options) -> InitReport:
    """Initialise a model with what a source has for it. Raises as `init_model` does; the model is then as it was."""
    clock = place.clock

    def plan_and_check() -> Plan:
        source = resolved.source
        only, skip = options.only or source.only, options.skip or source.skip
        kept = kept_parameters(place.model, place.name, only, skip, place.given_names)
        plan = make_plan(place.model, place.name, offer(kept), resolved, options.seed, kept)
        _check(place, plan)
        return plan

    def offer(kept: Mapping[str, str]) -> Offer:
        if resolved.ghn is not None:
            dialect = resolved.ghn.dialect
            graph = clock("trace", lambda: place.trace(dialect, options.input_size, options.example_inputs))
            return predicted(graph, resolved.ghn.num_classes, resolved.source)
        clock("own", place.give_values)
        seed = resolved.source.seed_or(options.seed)
        with exact(place.device):
            return clock(
                "draw", lambda: given(place.model, place.name, resolved.source, resolved.function, seed, kept, results)
            )

    def predict() -> dict[str, Tile]:
        """Section 2 of the paper. The values of a function are there already."""
        if resolved.ghn is None:
            return {}
        ghn = resolved.ghn
        with exact(place.device):
            z = clock("embed", lambda: ghn.embed(plan.graph))
            tiles = clock("decode", lambda: ghn.decode(plan.graph, z, plan.names))
            assign.check_finite(tiles, f"{place.name}, {plan.source}")
        return tiles

    def compute_and_write() -> None:
        tiles = place.together("prediction", predict)
        with exact(place.device):
            if plan.changed:  # Section 3 of the paper
                clock("postprocess", lambda: place.postprocess(plan, tiles, results, options.progress))
            assign.invert(plan.computed, {layer.name for layer in plan.changed}, tiles, results)
        with assign.uninterrupted():
            clock("write", lambda: place.write(tiles, results))

    def set_scales() -> None:
        for name in plan.scaled:
            part = place.part(place.model.get_parameter(name))
            results.put(name, torch.full(part.shape, plan.layer_scale or 0.0, dtype=part.dtype))

    with Pending() as results:
        try:
            plan = place.together("plan and checks", plan_and_check, lambda plan: _in_common(place, plan))
            finished = Finished(place, plan)
            place.together("memory", lambda: place.give_memory(plan.whole))
            set_scales()
            finished.fill(compute_and_write, results)
        except BaseException:
            place.take_back()
            raise
    return _report(place, plan, finished)


def _check(place: Place, plan: Plan) -> None:
    """Whatever would keep a parameter from being written is found before anything is."""
    for name, by in plan.computed.items():
        if not place.whole:
            raise InputError(
                f"{place.name}: {by.name} is computed from {name}. Initialise the model before sharding it."
            )
    parameters = dict(place.model.named_parameters(remove_duplicate=False))
    # The classifier too, whatever classes the GHN has.
    heads = [] if plan.offer.graph is None else [n for n, t in plan.graph.targets.items() if t.classifier]
    for name in dict.fromkeys((*plan.written, *plan.scaled, *heads)):
        problem = assign.unwritable(place.part(parameters[name]))
        if problem:
            raise InputError(f"{place.name}: {name} {problem} Nothing was changed.")
    for layer in plan.changed:
        problem = unprocessable(layer.weight)
        if problem:
            raise InputError(f"{place.name}: {layer.name} {problem}")


def _in_common(place: Place, plan: Plan) -> dict[str, str]:
    """What all who work on a model must have in common. Where the GHN was shared, they have that."""
    resolved = plan.resolved
    return {
        "source": str(resolved.asked.prediction),
        "model": place.name,
        "seed": str(plan.seed),
        "plan (graph, shapes, dtypes, GHN)": plan.key(place.model, resolved.digest if resolved.own else ""),
    }


def _report(place: Place, plan: Plan, finished: Finished) -> InitReport:
    graph = plan.offer.graph
    return InitReport(
        model=place.name,
        source=str(plan.source),
        device=str(place.device if graph or plan.changed else "cpu"),
        nodes=len(graph.nodes) if graph else 0,
        edges=len(graph.edges) if graph else 0,
        predicted=plan.roles,
        skipped=plan.skipped,
        sizes={n: p.numel() for n, p in place.model.named_parameters()},
        layer=plan.layer or None,
        postprocessed=tuple(layer.name for layer in plan.changed),
        seed=plan.seed if plan.layer or graph is None else None,
        seconds=place.clock.seconds,
        cached=finished.cached,
        key=finished.key,
        hub=finished.repo,
        downloaded=finished.downloaded,
        own=place.own,
        unset=place.unset,
    )
