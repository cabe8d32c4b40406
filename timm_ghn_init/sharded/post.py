"""Post-processing of sharded weights: each layer whole on one rank, all ranks busy with a layer of their own.

Layers go around the ranks in the order of their cost, so that those of one round take about the same time. While the
parts of one round are on their way, the layers of the next one are computed. A rank has two layers in memory besides
its parts at the most: one that is computed and one that is sent.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..ghn import Tile
from ..recipe.plan import Plan
from ..recipe.postprocessing import cost, process_weight, progress_bar
from ..threads import one_thread
from .exchange import Exchange
from .layout import Layout


def owners(model: nn.Module, names: list[str], ranks: int) -> list[dict[str, int]]:
    """Who computes which layer: rounds of at most one layer for each rank."""
    ordered = sorted(names, key=lambda name: cost(model.get_parameter(name)), reverse=True)
    rounds = [ordered[i : i + ranks] for i in range(0, len(ordered), ranks)]
    # Forth and back, so that it is not always the same rank that has the largest one.
    return [{n: j if i % 2 == 0 else ranks - 1 - j for j, n in enumerate(names)} for i, names in enumerate(rounds)]


class PostProcessing:
    """One post-processing. All ranks of the mesh must run it.

    Args:
        model: its parameters may still be without their prediction.
        names: the weights.
        plan: with which options.
        tiles: predictions that are not written yet; other weights are gathered.
        device: where to compute.
    """

    def __init__(
        self,
        model: nn.Module,
        names: list[str],
        plan: Plan,
        tiles: Mapping[str, Tile],
        layout: Layout,
        device: torch.device,
    ) -> None:
        self._model, self._names, self._plan, self._tiles = model, names, plan, tiles
        self._layout, self._device = layout, device
        self._failure: Exception | None = None

    @torch.no_grad()
    def run(self, exchange: Exchange, progress: bool | None) -> None:
        """Post-process all of them.

        A rank whose computation fails goes on sending, so that no other waits for it, and raises at the end.
        """
        rounds = owners(self._model, self._names, self._layout.size)
        show = progress if self._layout.rank == 0 else False
        under_way: list = []  # type: ignore[type-arg]
        with one_thread(), progress_bar(show, len(self._names)) as advance:
            for owner in rounds:
                weights = {name: (self._model.get_parameter(name), rank) for name, rank in owner.items()}
                gathered = exchange.gather({name: pair for name, pair in weights.items() if name not in self._tiles})
                mine = next((name for name, rank in owner.items() if rank == self._layout.rank), None)
                whole = None if mine is None else self._compute(mine, gathered)
                exchange.wait(under_way)
                for name, (parameter, rank) in weights.items():
                    exchange.scatter(name, parameter, rank, whole if rank == self._layout.rank else None)
                    advance()
                del whole, gathered
                under_way = exchange.start()
            exchange.wait(under_way)
        if self._failure is not None:
            raise self._failure

    def _compute(self, name: str, gathered: Tensor | None) -> Tensor:
        parameter, source = self._model.get_parameter(name), self._plan.source
        whole = gathered
        try:
            if gathered is None:
                whole = empty_for(parameter, self._device)
                self._tiles[name].to(self._device).write_(whole)
            assert whole is not None
            process_weight(whole, name, source.beta, source.orthogonal, self._plan.seed, self._device)
        except Exception as error:  # out of memory, for one
            self._failure = self._failure or RuntimeError(
                f"{name}: {type(error).__name__}: {error}. The model is initialised in part: initialise it again."
            )
            if whole is None:
                whole = torch.zeros((), dtype=parameter.dtype, device=self._device).expand(parameter.shape)
        return whole


def empty_for(parameter: Tensor, device: torch.device) -> Tensor:
    """Memory for a whole weight, in the layout that `process_weight` works in without a copy (for float32)."""
    rows, columns = parameter.shape[0], math.prod(parameter.shape[1:])
    if rows < columns:
        return torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    return torch.empty((columns, rows), dtype=parameter.dtype, device=device).T.unflatten(1, parameter.shape[1:])
