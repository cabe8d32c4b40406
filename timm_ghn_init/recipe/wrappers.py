"""A model without what is put around it, or a part of it: DataParallel, DDP, torch.compile, EMA."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from ..own_init.stand_ins import named_tensors

# full name of the class -> the child that it wraps
_WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.optim.swa_utils.AveragedModel": "module",
    "timm.utils.model_ema.ModelEmaV2": "module",
    "timm.utils.model_ema.ModelEmaV3": "module",
    "apex.parallel.distributed.DistributedDataParallel": "module",
    "deepspeed.runtime.engine.DeepSpeedEngine": "module",
}
_AROUND_LAYERS = re.compile(r"\.(base_layer|_checkpoint_wrapped_module)\.")


def name_inside(model: nn.Module) -> Callable[[str], str]:
    """The name of a parameter within the innermost module that has all of a model's parameters.

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
    modules = list(model.modules())
    wrappers = {cls for cls in {type(m) for m in modules} if _wrapped_by(cls) is not None}
    if not wrappers:
        yield model, {}
        return
    children = [(m, key, c) for m in modules if type(m) not in wrappers for key, c in m._modules.items()]
    wrapped = [(m, key, child) for m, key, child in children if child is not None and type(child) in wrappers]
    inner = _inside(model)
    before = {id(t): name for name, t in named_tensors(model).items()}
    try:
        for m, key, child in wrapped:
            m._modules[key] = _inside(child)
        yield inner, {name: before[id(t)] for name, t in named_tensors(inner).items()}
    finally:
        for m, key, child in wrapped:
            m._modules[key] = child


def _inside(module: nn.Module) -> nn.Module:
    """The model that a wrapper is around, through any number of wrappers; any other module itself."""
    while (key := _wrapped_by(type(module))) is not None:
        module = module._modules[key]  # type: ignore[assignment]
    return module


def _wrapped_by(cls: type) -> str | None:
    """The name of the child that modules of a class wrap; None if they compute something of their own."""
    for base in cls.__mro__:
        key = _WRAPPERS.get(f"{base.__module__}.{base.__qualname__}")
        if key is not None:
            return key if cls.forward is base.forward else None  # type: ignore[attr-defined]
    return None
