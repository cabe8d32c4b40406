"""Predicted tensors -> the model's parameters, in place."""

import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..ghn import Tile
from ..own_init.stand_ins import named_tensors
from ..utils.text import Told
from ..utils.threads import one_thread
from .parametrised import Computed, parametrised


class PredictionError(Told, RuntimeError):
    """The values to write are none that a parameter can have; the message names the parameter."""


def check_finite(tiles: Mapping[str, Tile], what: str) -> None:
    """Refuse predictions that hold NaN or infinity; `what` names the model and the GHN."""
    if not tiles:
        return
    blocks = [tile.block for tile in tiles.values()]
    with one_thread():  # small sums, for which threads would wait longer than they work
        vectors = torch.cat([blocks[0].new_zeros(1), *(block for block in blocks if block.dim() == 1)])
        sums = [vectors.sum(), *(block.sum() for block in blocks if block.dim() != 1)]  # NaN and infinity survive
        if torch.stack(sums).isfinite().all():
            return
    bad = [name for name, tile in tiles.items() if not tile.block.sum().isfinite()]
    if bad:
        raise PredictionError(
            f"{what}: {len(bad)} predicted parameters are not finite ({', '.join(bad[:3])} ...). The GHN or its "
            "checkpoint is damaged; fetch it again or name another source. The model is unchanged."
        )


def unwritable(parameter: Tensor) -> str | None:
    """Why a parameter cannot be predicted, and the way out; None if it can, also where it has no memory yet."""
    if not (parameter.is_floating_point() or parameter.is_complex()):
        return f"is {parameter.dtype}, which holds no prediction. Initialise the model before it is quantised."
    return None if parameter.is_meta else locked(parameter)


def locked(tensor: Tensor) -> str | None:
    """Why the memory of a parameter or buffer cannot be written to, and the way out; None if it can."""
    if tensor.layout != torch.strided:
        return f"is {tensor.layout}. Initialise the model with a dense tensor there."
    if _overlaps(tensor):
        return "is expanded: several of its values share one place in memory. Give it a .clone() for its .data first."
    if tensor.is_inference() and not torch.is_inference_mode_enabled():
        return (
            "was made under torch.inference_mode, outside of which it cannot be written. Initialise the model inside, "
            "or build it outside."
        )
    return None


def _overlaps(tensor: Tensor) -> bool:
    """Whether several values of a tensor share one place in memory."""
    if tensor.is_contiguous():
        return False
    reached = 1  # by all dimensions of smaller steps
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step < reached:
            return True
        reached += step * (size - 1)
    return False


@torch.no_grad()
def write(parameters: Mapping[str, Tensor], tiles: Mapping[str, Tile]) -> None:
    """Write predictions into the parameters of these names: identity, dtype, device and `requires_grad` stay."""
    with one_thread():  # as fast as memory takes it, and never waiting for a second core
        for name, tile in brought({n: parameters[n].device for n in tiles}, tiles).items():
            tile.write_(parameters[name])


def brought(where: Mapping[str, torch.device], tiles: Mapping[str, Tile]) -> dict[str, Tile]:
    """Tiles on the devices on which they are wanted; those that have to go from one to another go in one copy."""
    found, moving = dict(tiles), defaultdict[torch.device, list[str]](list)
    for name, tile in tiles.items():
        if tile.block.device != where[name]:
            moving[where[name]].append(name)
    for device, names in moving.items():
        blocks = [tiles[n].block for n in names]
        values = torch.cat([block.reshape(-1) for block in blocks]).to(device).split([b.numel() for b in blocks])
        for name, block, value in zip(names, blocks, values, strict=True):
            found[name] = replace(tiles[name], block=value.view(block.shape))
    return found


@torch.no_grad()
def write_results(
    model: nn.Module, results: dict[str, Tensor], part: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> None:
    """Write what has waited for it into parameters and buffers of a model, or the `part` of each, as `write` does."""
    if not results:
        return
    tensors = named_tensors(model)
    with one_thread():
        for name in list(results):
            part(tensors[name]).copy_(results.pop(name))
        for weight in parametrised(model):
            weight.refresh()


def invert(
    computed: Mapping[str, Computed], done: Collection[str], tiles: dict[str, Tile], results: dict[str, Tensor]
) -> None:
    """Put what to write, for weights that are computed from other tensors, into `results` in place of their values.

    Post-processing has `done` some of them. Predictions that are used are taken out of `tiles`.
    """
    with one_thread():  # products and singular vectors, whose bits depend on the number of threads
        for name in [n for n in computed if n not in done]:
            by = computed[name]
            parameter = by.parameters[name]
            value = torch.empty(parameter.shape, dtype=parameter.dtype, device=parameter.device)
            if name in tiles:
                tiles.pop(name).to(value.device).write_(value)
            else:
                value.copy_(results[name])
            results |= by.inverse(value)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold off Ctrl-C until the end of the block: what is being written is written whole."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or threading.current_thread() is not threading.main_thread():  # it would not be ours to hold off
        yield
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
