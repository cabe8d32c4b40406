"""Finished weights that are kept: they need not be predicted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..weights import cache, hub
from ..weights.key import arithmetic
from . import assign
from .place import Place
from .plan import Plan


class Finished:
    """The parts of a prediction that the cache, and after it the Hub, has; nothing where neither is asked.

    Both keep the predicted parts as they are after post-processing. The cache is asked for post-processed weights only:
    others are predicted faster than they are read. Neither is asked for a model some of whose weights are computed from
    other tensors: what is written there depends on how, which no key knows.

    Attributes:
        key: as in `weights_key`; "" where neither is asked.
        repo: the Hub's repository that is asked; "" for none.
        cached, downloaded: whether the weights came from there.
    """

    def __init__(self, place: Place, plans: Sequence[Plan]) -> None:
        plan, resolved = plans[0], plans[0].resolved
        self._place, self._plan = place, plan
        self.key = self.repo = ""
        self.cached = self.downloaded = self._keeps = False
        if plan.computed or resolved.ghn is None or len(plans) > 1:
            return
        self._keeps = resolved.cache and bool(plan.changed)
        if self._keeps or resolved.org:
            self.key = plan.key(place.model, resolved.digest)
        if resolved.org:
            self.repo = f"{resolved.org}/{hub.repo_name(place.name, resolved.source, resolved.digest)}"

    def fill(self, predict: Callable[[], object], results: dict[str, Tensor]) -> None:
        """Fill the predicted parts of the parameters: from the cache, else from the Hub, else by `predict`.

        Args:
            results: what is written with them, where they are found.
        """
        place = self._place
        if not self.key:
            predict()
            return
        targets = self._plan.graph.targets
        parts = {n: targets[n].part(place.parameters[n]) for n in self._plan.names}

        def take(found: Mapping[str, Tensor]) -> None:
            with assign.uninterrupted():
                place.write({}, results, [(part, found[name]) for name, part in parts.items()])

        def make() -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
            found = place.clock("hub", lambda: hub.find(self.repo, self.key, targets, parts)) if self.repo else None
            self.downloaded = found is not None
            if found is None:
                predict()
                return parts, {"model": place.name, "source": str(self._plan.source), "device": str(place.device)}
            take(found)
            return {}, {}  # the Hub's own cache keeps them

        def remember() -> bool:
            found, _, cached = cache.remember(f"{self.key}-{arithmetic(place.device)}", make, parts)
            if cached:
                take(found)
            return cached

        if self._keeps:
            self.cached = place.clock("cache", remember)
        else:
            make()
