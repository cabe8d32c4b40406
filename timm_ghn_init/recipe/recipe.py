"""The recipe: trace, plan, check, embed, decode, post-process, write, report.

Nothing is written before all is computed. What the recipe needs to know of a model's memory is a `Place`.
"""

from ..ghn import Tile
from ..report import InitReport
from ..utils.checks import InputError
from . import assign
from .exact import exact
from .finished import Finished
from .options import Options
from .pending import Pending
from .place import Place
from .plan import Plan, make_plan
from .postprocessing import unprocessable
from .resolved import Resolved


def initialise(place: Place, resolved: Resolved, options: Options) -> InitReport:
    """Initialise a model with a prediction. Raises as `init_model` does; the model is then as it was."""
    ghn, clock = resolved.ghn, place.clock

    def plan_and_check() -> Plan:
        graph = clock("trace", lambda: place.trace(ghn.dialect, options.input_size, options.example_inputs))
        plan = make_plan(place.model, place.name, graph, resolved, options.seed)
        _check(place, plan)
        return plan

    def predict() -> dict[str, Tile]:
        """Section 2 of the paper."""
        with exact(place.device):
            z = clock("embed", lambda: ghn.embed(plan.graph))
            tiles = clock("decode", lambda: ghn.decode(plan.graph, z, plan.names))
            assign.check_finite(tiles, f"{place.name}, {plan.source}")
        return tiles

    def predict_and_write() -> None:
        tiles = place.together("prediction", predict)
        with Pending() as results:
            with exact(place.device):
                if plan.changed:  # Section 3 of the paper
                    clock("postprocess", lambda: place.postprocess(plan, tiles, results, options.progress))
                assign.invert(plan.computed, tiles, results)
            with assign.uninterrupted():
                clock("write", lambda: place.write(tiles, results))

    plan = place.together("plan and checks", plan_and_check, lambda plan: _in_common(place, plan))
    finished = Finished(place, plan)
    try:
        place.together("memory", lambda: place.give_memory(plan.whole))
        finished.fill(predict_and_write)
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
    for name in dict.fromkeys((*plan.written, *plan.graph.targets)):  # the classifier too, whatever classes the GHN has
        problem = assign.unwritable(place.part(place.model.get_parameter(name)))
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
    return InitReport(
        model=place.name,
        source=str(plan.source),
        device=str(place.device),
        nodes=len(plan.graph.nodes),
        edges=len(plan.graph.edges),
        predicted={n: plan.graph.targets[n].role if n in plan.names else "weight" for n in plan.written},
        skipped=plan.skipped,
        sizes={n: p.numel() for n, p in place.model.named_parameters()},
        layer=plan.layer or None,
        postprocessed=tuple(layer.name for layer in plan.changed),
        seed=plan.seed if plan.layer else None,
        seconds=place.clock.seconds,
        cached=finished.cached,
        key=finished.key,
        hub=finished.repo,
        downloaded=finished.downloaded,
        own=place.own,
        unset=place.unset,
    )
