"""Post-processing of sharded weights: each layer whole on one rank, all ranks busy with a layer of their own.

Layers go around the ranks in the order of their cost, so that those of one round take about the same time. While the
parts of one round are on their way, the layers of the next one are computed. A rank has two layers in memory besides
its parts at the most: one that is computed and one that is sent. Nothing is written to the model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..ghn import Tile
from ..recipe.pending import Pending
from ..recipe.plan import Plan
from ..recipe.postprocessing import Layer, cost, empty_for, process_weight, progress_bar, rounded
from ..utils.threads import one_thread
from .exchange import Exchange, local
from .layout import Layout


def owners(layers: Sequence[Layer], ranks: int) -> list[dict[int, Layer]]:
    """Who computes which layer: rounds of at most one layer for each rank."""
    ordered = sorted(layers, key=lambda layer: cost(layer.weight), reverse=True)
    rounds = [ordered[i : i + ranks] for i in range(0, len(ordered), ranks)]
    # Forth and back, so that it is not always the same rank that has the largest one.
    return [{j if i % 2 == 0 else ranks - 1 - j: x for j, x in enumerate(round_)} for i, round_ in enumerate(rounds)]


class PostProcessing:
    """One post-processing. All ranks of the mesh must run it.

    Args:
        plan: which layers, and with which options.
        tiles: predictions. Those used are taken out.
        results: gets this rank's part of each weight.
        device: where to compute.
    """

    def __init__(
        self, plan: Plan, tiles: dict[str, Tile], results: Pending, layout: Layout, device: torch.device
    ) -> None:
        self._plan, self._tiles, self._results = plan, tiles, results
        self._layout, self._device = layout, device
        self._failure: Exception | None = None

    @torch.no_grad()
    def run(self, exchange: Exchange, progress: bool | None) -> None:
        """Post-process all layers of the plan.

        A rank whose computation fails goes on sending, so that no other waits for it, and raises at the end.
        """
        layers = self._plan.changed
        show = progress if self._layout.rank == 0 else False
        under_way: list = []  # type: ignore[type-arg]
        parts: dict[str, Tensor] = {}  # that are under way
        with one_thread(), progress_bar(show, len(layers)) as advance:
            for round_ in owners(layers, self._layout.size):
                mine = round_.get(self._layout.rank)
                whole = None if mine is None else self._compute(mine)
                self._finish(exchange, under_way, parts)
                for rank, layer in round_.items():
                    part = parts[layer.name] = torch.empty_like(local(layer.weight))
                    exchange.scatter(layer.name, layer.weight, rank, whole if layer is mine else None, part)
                    self._tiles.pop(layer.name)
                    advance()
                del whole
                under_way = exchange.start()
            self._finish(exchange, under_way, parts)
        if self._failure is not None:
            raise self._failure

    def _finish(self, exchange: Exchange, under_way: list[Any], parts: dict[str, Tensor]) -> None:
        exchange.wait(under_way)
        while parts:
            self._results.put(*parts.popitem())

    def _compute(self, layer: Layer) -> Tensor:
        whole: Tensor | None = None
        try:
            whole = empty_for(layer.weight, self._device)
            self._tiles[layer.name].to(self._device).write_(whole)
            process_weight(whole, layer.stream, *self._plan.equations, self._device)
            whole = rounded(whole, layer, self._plan.equations)
        except Exception as error:  # out of memory, for one
            self._failure = self._failure or RuntimeError(
                f"{layer.name}: {type(error).__name__}: {error}. Nothing was written."
            )
        if whole is None:
            whole = torch.zeros((), dtype=layer.weight.dtype, device=self._device).expand(layer.weight.shape)
        return whole
