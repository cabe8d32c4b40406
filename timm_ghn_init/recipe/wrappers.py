"""A model without what is put around it, or a part of it: DataParallel, DDP, torch.compile, EMA."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from ..graph.wrappers import inside
from ..own_init.stand_ins import named_tensors

_AROUND_LAYERS = re.compile(r"\.(base_layer|_checkpoint_wrapped_module)\.")


def name_inside(model: nn.Module) -> Callable[[str], str]:
    """What a parameter is called within the innermost module that has all of a model's parameters.

    That is the same whatever is put around the network (a LightningModule), or around its layers (low-rank adapters,
    activation checkpointing).
    """
    path, module = "", model
    while not any(p is not None for p in module._parameters.values()):
        children = [(n, c) for n, c in module.named_children() if next(c.parameters(), None) is not None]
        if len(children) != 1:
            break
        ((name, module),) = children
        path += f"{name}."
    return lambda name: _AROUND_LAYERS.sub(".", name.removeprefix(path))


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
