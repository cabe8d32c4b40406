"""What is put around a model, or a part of it, and changes nothing about it: DataParallel, DDP, torch.compile, EMA."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..own_init.stand_ins import named_tensors

_INSIDE = ("module", "_orig_mod")  # what wrappers call the model that they are around


def inside(module: nn.Module) -> nn.Module:
    """What a module is around if it is a wrapper, that is, has nothing of its own; else the module itself."""
    while len(module._modules) == 1 and not any(p is not None for p in module._parameters.values()):
        (name, child), *_ = module._modules.items()
        if name not in _INSIDE or child is None or child is module:
            break
        module = child
    return module


@contextmanager
def bare(model: nn.Module) -> Iterator[tuple[nn.Module, dict[str, str]]]:
    """A model without its wrappers, for as long as a block lasts.

    Yields:
        The model inside, and for the names of its parameters and buffers those that they have in `model`.
    """
    before = {id(t): name for name, t in named_tensors(model).items()}
    wrapped = [(m, key, c) for m in model.modules() for key, c in m._modules.items() if c is not None]
    wrapped = [(m, key, child) for m, key, child in wrapped if inside(child) is not child and inside(m) is m]
    try:
        for m, key, child in wrapped:
            m._modules[key] = inside(child)
        inner = inside(model)
        yield inner, {name: before[id(t)] for name, t in named_tensors(inner).items()}
    finally:
        for m, key, child in wrapped:
            m._modules[key] = child
