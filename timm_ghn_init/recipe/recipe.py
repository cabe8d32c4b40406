"""The recipe: plan, check, compute, post-process, write, report, whatever the source.

Nothing is written before all is computed. A `Place` tells the recipe about a model's memory.
"""

from collections.abc import Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from ..ghn import Tile
from ..report import InitReport
from ..utils.checks import InputError
from ..utils.text import logger
from . import assign
from .exact import exact
from .finished import Finished, fill
from .offer import Offer, Resolved, given, predicted
from .place import Place
from .plan import Plan, kept_parameters, make_plan
from .postprocessing import unprocessable
from .purpose import find_purpose, fixed_norms
from .unnormed import scaled_down

_logger = logger(__name__)


def initialise(place: Place, resolved: Sequence[Resolved]) -> InitReport:
    """Initialise a model with what the parts of a source have for it. Values of a later part count.

    Only the first may have a GHN. Raises as `init_model` does; the model is then as it was.
    """
    results: dict[str, Tensor] = {}  # values that wait until all are there, by the names of parameters and buffers
    try:
        plans = place.together(
            "plan and checks", lambda: plan(place, resolved, results), lambda plans: _in_common(place, plans[0])
        )
        place.together("memory", lambda: place.give_memory([n for plan in plans for n in plan.whole]))
        for name, value in ((n, plan.layer_scale or 0.0) for plan in plans for n in plan.scaled):
            part = place.part(place.parameters[name])
            results[name] = torch.full(part.shape, value, dtype=part.dtype)
        finished = fill(place, plans, lambda: _compute_and_write(place, plans, results), results)
    except BaseException:
        place.take_back()
        raise
    return _report(place, plans, finished)


def plan(place: Place, resolved: Sequence[Resolved], results: dict[str, Tensor]) -> list[Plan]:
    """A plan for each part of the source, all of them checked; `results` gets the values of functions."""
    plans: list[Plan] = []
    for part in resolved:
        new = _plan_part(place, part, results)
        plans = [*(earlier.without(new.roles) for earlier in plans), new]
    for each in plans:
        _check(place, each)
    _warn_of_fixed_norms(place)
    return plans


def _plan_part(place: Place, part: Resolved, results: dict[str, Tensor]) -> Plan:
    options = place.options
    only, skip = options.only or part.source.only, options.skip or part.source.skip
    kept = kept_parameters(place.model, place.name, only, skip, place.given_names)
    offer = _offer(place, part, kept, results)
    roles = {n: role for n, role in offer.roles.items() if n not in kept}
    values = place.values(list(roles))
    purpose = find_purpose(place.model, roles, values, place.graph_if_any, only, part.ghn is not None)
    on_purpose = place.agreed(purpose.kept, values)
    for name in on_purpose:
        results.pop(name, None)
    graph = place.graph_if_any() if part.effective else None
    kept = {**kept, **on_purpose}
    unnormed = tuple(n for n in purpose.unnormed if n not in kept)
    return make_plan(place.model, place.name, offer, part, options.seed, kept, unnormed, purpose.notes, graph)


def _offer(place: Place, part: Resolved, kept: Collection[str], results: dict[str, Tensor]) -> Offer:
    if part.ghn is not None:
        return predicted(place.graph(part.ghn.dialect), part.ghn.num_classes, part.source)
    place.clock("own", place.give_values)
    seed, graph = part.source.seed_or(place.options.seed), place.graph("ghn2") if part.needs_graph else None
    with exact(place.device):
        return place.clock("draw", lambda: given(place.model, place.name, part, seed, kept, results, graph))


def _compute_and_write(place: Place, plans: Sequence[Plan], results: dict[str, Tensor]) -> None:
    """Predict (the values of functions are there already), post-process, write."""
    tiles = place.together("prediction", lambda: _predict(place, plans[0]))
    with exact(place.device):
        for plan in plans:
            if plan.changed:  # Section 3 of the paper
                place.clock("postprocess", partial(place.postprocess, plan, tiles, results))
            assign.invert(plan.computed, {layer.name for layer in plan.changed}, tiles, results)
    with assign.uninterrupted():
        place.clock("write", lambda: place.write(tiles, results))


def _predict(place: Place, plan: Plan) -> dict[str, Tile]:
    """Section 2 of the paper."""
    ghn = plan.resolved.ghn
    if ghn is None or not plan.names:
        return {}
    with exact(place.device):
        z = place.clock("embed", lambda: ghn.embed(plan.graph))
        tiles = place.clock("decode", lambda: ghn.decode(plan.graph, z, plan.names))
        assign.check_finite(tiles, f"{place.name}, {plan.source}")
        return scaled_down(tiles, plan.unnormed)


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
    for name in dict.fromkeys((*plan.roles, *plan.scaled, *heads)):
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
    scaled = sum(len(plan.unnormed) for plan in plans)  # without those that a later source has replaced
    notes = [f"{scaled} predicted weights with no norm behind them are scaled"] if scaled else []
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
        parts={n: str(plan.source) for plan in plans for n in plan.roles} if len(plans) > 1 else {},
        notes=tuple(dict.fromkeys([*notes, *(note for plan in plans for note in plan.notes)])),
    )
