"""Modules that wrap a model and change nothing about what it computes: known by their class, not by a child's name."""

from torch import nn

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


def inside(module: nn.Module) -> nn.Module:
    """The model that a wrapper is around, through any number of wrappers; any other module itself.

    Example:
        >>> inside(nn.DataParallel(model)) is model
        True
    """
    while (key := _wrapped_by(type(module))) is not None:
        module = module._modules[key]  # type: ignore[assignment]
    return module


def is_wrapper(cls: type) -> bool:
    """Whether modules of a class wrap another."""
    return _wrapped_by(cls) is not None


def _wrapped_by(cls: type) -> str | None:
    """The name of the child that modules of a class wrap; None if they compute something of their own."""
    for base in cls.__mro__:
        key = _WRAPPERS.get(f"{base.__module__}.{base.__qualname__}")
        if key is not None:
            return key if cls.forward is base.forward else None  # type: ignore[attr-defined]
    return None
