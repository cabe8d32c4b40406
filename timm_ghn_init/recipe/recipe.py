"""The recipe, in the order of the paper: trace, plan, check, embed, decode, write, post-process, report.

What it needs to know of a model's memory is a `Place`.
"""

from collections.abc import Mapping

import torch

from ..ghn import Tile
from ..report import InitReport
from . import assign
from .finished import Finished
from .options import Options
from .place import Place
from .plan import Plan, make_plan
from .postprocessing import check
from .resolved import Resolved


def initialise(place: Place, resolved: Resolved, options: Options) -> InitReport:
    """Initialise a model with a prediction. Raises as `init_model` does."""
    ghn, clock = resolved.ghn, place.clock

    def plan_and_check() -> Plan:
        graph = clock("trace", lambda: place.trace(ghn.dialect, options.input_size, options.example_inputs))
        plan = make_plan(place.model, place.name, graph, resolved, options.seed)
        _check(place, plan)
        return plan

    def give_memory() -> None:
        place.give_memory([n for n in plan.names if plan.graph.targets[n].whole])
        _check(place, plan)  # now that all values are there

    def predict() -> dict[str, Tile]:
        """Section 2 of the paper."""
        z = clock("embed", lambda: ghn.embed(plan.graph))
        tiles = clock("decode", lambda: ghn.decode(plan.graph, z, plan.names))
        assign.check_finite(tiles, f"{place.name}, {plan.source}")
        return tiles

    def predict_and_write() -> None:
        tiles = place.together("prediction", predict)
        clock("write", lambda: place.write(tiles, plan.final))
        postprocess(plan.final, tiles)

    def postprocess(names: list[str], tiles: Mapping[str, Tile]) -> None:
        """Section 3 of the paper."""
        if names:
            clock("postprocess", lambda: place.postprocess(names, tiles, plan, options.progress))

    with torch.no_grad(), torch.autocast(place.device.type, enabled=False):  # float32, whatever the caller trains in
        plan = place.together("plan and checks", plan_and_check, lambda plan: _in_common(place, plan))
        finished = Finished(place, plan)
        place.together("memory", give_memory)
        finished.fill(predict_and_write)
        postprocess(plan.rest, {})
    return _report(place, plan, finished)


def _check(place: Place, plan: Plan) -> None:
    if plan.layer:
        check(place.model, plan.layer, plan.source.beta, overwritten=plan.names, look_at=place.look_at)


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
    return InitReport(
        model=place.name,
        source=str(plan.source),
        device=str(place.device),
        nodes=len(plan.graph.nodes),
        edges=len(plan.graph.edges),
        predicted={n: plan.graph.targets[n].role for n in plan.names},
        skipped=plan.skipped,
        sizes={n: p.numel() for n, p in place.model.named_parameters()},
        layer=plan.layer or None,
        postprocessed=tuple(plan.changed),
        seed=plan.seed if plan.layer else None,
        seconds=place.clock.seconds,
        cached=finished.cached,
        key=finished.key,
        hub=finished.repo,
        downloaded=finished.downloaded,
        own=place.own,
        unset=place.unset,
    )
