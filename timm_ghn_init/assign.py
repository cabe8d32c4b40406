"""Predicted tensors -> the model's parameters, in place."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from .ghn import Tile
from .threads import one_thread_each

MAX_WORKERS = 8  # memory is written no faster by more


def check_finite(tiles: Mapping[str, Tile], what: str) -> None:
    """Refuse predictions that hold NaN or infinity, before anything is written.

    Args:
        tiles: predictions by parameter name.
        what: the model and the GHN, for the message.

    Raises:
        RuntimeError: names the first parameters concerned.
    """
    if not tiles:
        return
    sums = torch.stack([tile.block.sum() for tile in tiles.values()])  # NaN and infinity survive a sum
    bad = [name for name, finite in zip(tiles, sums.isfinite().tolist(), strict=True) if not finite]
    if bad:
        raise RuntimeError(
            f"{what}: {len(bad)} predicted parameters are not finite ({', '.join(bad[:3])} ...). The GHN or its "
            "checkpoint is damaged; fetch it again or name another source. The model is unchanged."
        )


@torch.no_grad()
def write(model: nn.Module, tiles: Mapping[str, Tile]) -> None:
    """Write predictions into the parameters of a model: identity, dtype, device and `requires_grad` stay."""
    parameters = dict(model.named_parameters())

    def fill(names: Iterable[str]) -> None:
        for name in names:
            tiles[name].to(parameters[name].device).write_(parameters[name])

    if any(parameters[name].is_cuda for name in tiles):
        fill(tiles)
        return
    with one_thread_each(MAX_WORKERS) as map_:
        shares = _shares({name: parameters[name].numel() for name in tiles}, torch.get_num_threads())
        for _ in map_(fill, shares):  # an error comes out here
            pass


def _shares(sizes: Mapping[str, int], number: int) -> list[list[str]]:
    """Names in lists of about the same total size, one for each thread."""
    shares: list[list[str]] = [[] for _ in range(min(number, MAX_WORKERS))]
    totals = [0] * len(shares)
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        smallest = totals.index(min(totals))
        shares[smallest].append(name)
        totals[smallest] += sizes[name]
    return shares
