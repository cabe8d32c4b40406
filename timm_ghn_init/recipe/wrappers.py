"""A model without what is put around it, or a part of it: DataParallel, DDP, torch.compile, EMA."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..graph.wrappers import inside
from ..own_init.stand_ins import named_tensors


@contextmanager
def bare(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    """A model without its wrappers, for as long as a block lasts.

    Yields:
        The model inside, and for the names of its parameters and buffers those that they have in `model`, where these
        differ.
    """
    children = [(m, key, child) for m in model.modules() for key, child in m._modules.items() if child is not None]
    wrapped = [(m, key, child) for m, key, child in children if inside(child) is not child and inside(m) is m]
    inner = inside(model)
    if inner is model and not wrapped:
        yield model, {}
        return
    before = {id(t): name for name, t in named_tensors(model).items()}
    try:
        for m, key, child in wrapped:
            m._modules[key] = inside(child)
        yield inner, {name: before[id(t)] for name, t in named_tensors(inner).items()}
    finally:
        for m, key, child in wrapped:
            m._modules[key] = child
