"""Predicted tensors -> the model's parameters, in place."""

from collections.abc import Mapping

import torch
from torch import nn

from ..ghn import Tile
from ..threads import one_thread


class PredictionError(RuntimeError):
    """A GHN predicts what no parameter can be; the message names the model, the parameter and the GHN."""


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
    with one_thread():  # small sums, for which threads would wait longer than they work
        sums = torch.stack([tile.block.sum() for tile in tiles.values()])  # NaN and infinity survive a sum
    bad = [name for name, finite in zip(tiles, sums.isfinite().tolist(), strict=True) if not finite]
    if bad:
        raise PredictionError(
            f"{what}: {len(bad)} predicted parameters are not finite ({', '.join(bad[:3])} ...). The GHN or its "
            "checkpoint is damaged; fetch it again or name another source. The model is unchanged."
        )


@torch.no_grad()
def write(model: nn.Module, tiles: Mapping[str, Tile]) -> None:
    """Write predictions into the parameters of a model: identity, dtype, device and `requires_grad` stay."""
    parameters = dict(model.named_parameters())
    with one_thread():  # as fast as memory takes it, and never waiting for a second core
        for name, tile in tiles.items():
            tile.to(parameters[name].device).write_(parameters[name])
