"""Finished weights that are kept: they need not be predicted."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..graph import model_name, trace
from ..weights import cache, hub
from .place import Place
from .plan import Plan, make_plan
from .resolved import Resolved


class Finished:
    """What the cache, and after it the Hub, has of a prediction; nothing where neither is asked.

    Both keep the predicted parts as they are after post-processing, as far as that follows from the prediction alone.

    Attributes:
        key: as in `weights_key`; "" where neither is asked.
        repo: the Hub's repository that is asked; "" for none.
        cached, downloaded: whether the weights came from there.
    """

    def __init__(self, place: Place, plan: Plan) -> None:
        self._place, self._plan = place, plan
        resolved = plan.resolved
        self.key = self.repo = ""
        if resolved.cache or resolved.org:
            self.key = plan.key(place.model, resolved.digest)
        # On the Hub are final values, which are of no use where they follow from the prediction in part.
        if resolved.org and not set(plan.names) & set(plan.rest):
            self.repo = f"{resolved.org}/{hub.repo_name(place.name, resolved.source, resolved.digest)}"
        self.cached = self.downloaded = False

    def fill(self, predict: Callable[[], object]) -> None:
        """Fill the predicted parts of the parameters: from the cache, else from the Hub, else by `predict`."""
        place, targets = self._place, self._plan.graph.targets
        if not self.key:
            predict()
            return
        parameters = dict(place.model.named_parameters())
        parts = {n: targets[n].part(parameters[n]) for n in self._plan.names}

        def make() -> bool:
            if self.repo:
                self.downloaded = place.clock("hub", lambda: hub.fill(self.repo, self.key, targets, parts))
            if not self.downloaded:
                predict()
            return not self.downloaded

        if not self._plan.resolved.cache:
            make()
            return
        about = {"model": place.name, "source": str(self._plan.source), "device": str(place.device)}
        file = f"{self.key}-{place.device.type}"
        self.cached = place.clock("cache", lambda: cache.fill(file, parts, make, about))


def find(
    model: nn.Module, resolved: Resolved, input_size: int | Sequence[Any] | None, seed: int | None
) -> tuple[str, str]:
    """The key of what would be predicted for a model, and the name of the Hub repository to look for it in."""
    name, graph = model_name(model), trace(model, input_size, resolved.ghn.dialect)
    plan = make_plan(model, name, graph, resolved, seed)
    return plan.key(model, resolved.digest), hub.repo_name(name, resolved.source, resolved.digest)
