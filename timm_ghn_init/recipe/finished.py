"""Finished weights that are kept: they need not be predicted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..weights import cache, hub
from ..weights.key import arithmetic
from . import assign
from .place import Place
from .plan import Plan


class Finished(NamedTuple):
    """How the values of a model came about."""

    key: str = ""  #: as in `weights_key`; "" where neither the cache nor the Hub is asked
    repo: str = ""  #: the Hub's repository that is asked
    cached: bool = False  #: whether they came from the cache
    downloaded: bool = False  #: whether they came from the Hub


def fill(place: Place, plans: Sequence[Plan], predict: Callable[[], object], results: dict[str, Tensor]) -> Finished:
    """Fill the predicted parts of the parameters: from the cache, else from the Hub, else by `predict`.

    Both keep them as they are after post-processing. The cache is asked for post-processed weights only: others are
    predicted faster than they are read. Neither is asked for a model some of whose weights are computed from other
    tensors: what is written there depends on how, which no key knows. Results are written with weights that are found.
    """
    plan, resolved = plans[0], plans[0].resolved
    may_be_kept = resolved.ghn is not None and not plan.computed and len(plans) == 1
    keeps = resolved.cache and bool(plan.changed)
    if not (may_be_kept and (keeps or resolved.org)):
        predict()
        return Finished()
    key, repo, downloaded = plan.key(place.model, resolved.digest), "", False
    if resolved.org:
        repo = f"{resolved.org}/{hub.repo_name(place.name, resolved.source, resolved.digest)}"
    targets = plan.graph.targets
    parts = {n: targets[n].part(place.parameters[n]) for n in plan.names}

    def take(found: Mapping[str, Tensor]) -> None:
        with assign.uninterrupted():
            place.write({}, results, [(part, found[name]) for name, part in parts.items()])

    def make() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        nonlocal downloaded
        found = place.clock("hub", lambda: hub.find(repo, key, targets, parts)) if repo else None
        if found is None:
            predict()
            return parts, {"model": place.name, "source": str(plan.source), "device": str(place.device)}
        downloaded = True
        take(found)
        return {}, {}  # the Hub's own cache keeps them

    def remember() -> bool:
        found, _, cached = cache.remember(f"{key}-{arithmetic(place.device)}", make, parts)
        if cached:
            take(found)
        return cached

    if keeps:
        return Finished(key, repo, place.clock("cache", remember), downloaded)
    make()
    return Finished(key, repo, False, downloaded)
