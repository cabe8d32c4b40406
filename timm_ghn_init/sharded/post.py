"""Post-processing of sharded weights: each layer whole on one rank, all ranks busy with a layer of their own.

Layers go around the ranks in the order of their cost, so that those of one round take about the same time. Then each
of them is sent to all ranks, which keep their parts. A rank has two whole layers in memory at the most. Nothing is
written to the model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..ghn import Tile
from ..recipe.plan import Plan
from ..recipe.postprocessing import Layer, cost, process
from ..utils.progress import Progress
from ..utils.threads import one_thread
from .layout import local, own_box
from .meeting import Meeting


def owners(layers: Sequence[Layer], ranks: int) -> list[dict[int, Layer]]:
    """Who computes which layer: rounds of at most one layer for each rank."""
    ordered = sorted(layers, key=lambda layer: cost(layer.weight), reverse=True)
    rounds = [ordered[i : i + ranks] for i in range(0, len(ordered), ranks)]
    # Forth and back, so that it is not always the same rank that has the largest one.
    return [{j if i % 2 == 0 else ranks - 1 - j: x for j, x in enumerate(round_)} for i, round_ in enumerate(rounds)]


@torch.no_grad()
def postprocess_parts(
    plan: Plan,
    tiles: dict[str, Tile],
    results: dict[str, Tensor],
    meeting: Meeting,
    device: torch.device,
    progress: bool | None,
) -> None:
    """As `Place.postprocess`; all ranks of the mesh must call it.

    A rank whose computation fails goes on sending, so that no other waits for it, and raises at the end.
    """
    failures = list[Exception]()

    def empty(layer: Layer) -> Tensor:
        return torch.empty(layer.weight.shape, dtype=layer.weight.dtype, device=meeting.device)

    def read(layer: Layer, whole: Tensor) -> None:
        tiles[layer.name].to(device).write_(whole)

    def compute(layer: Layer) -> Tensor:
        try:
            done: dict[str, Tensor] = {}
            process([layer], plan.equations, device, read, done, False)
            return done[layer.name].to(meeting.device).contiguous()
        except Exception as error:  # out of memory, for one
            failures.append(RuntimeError(f"{layer.name}: {type(error).__name__}: {error}. Nothing was written."))
            return empty(layer)

    show = progress if meeting.rank == 0 else False
    with one_thread(), Progress("post-processing", len(plan.changed), show=show, unit="layer") as bar:
        for round_ in owners(plan.changed, len(meeting.members)):
            computed = compute(round_[meeting.rank]) if meeting.rank in round_ else None
            for rank, layer in round_.items():
                whole = computed if computed is not None and rank == meeting.rank else empty(layer)
                meeting.broadcast([whole], rank, layer.name)
                part = local(layer.weight)
                results[layer.name] = own_box(layer.weight).of(whole).to(part.device, copy=True)
                del tiles[layer.name]
                bar.step()
    if failures:
        raise failures[0]
