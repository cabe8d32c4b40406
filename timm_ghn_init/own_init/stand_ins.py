"""A model with other tensors in place of its own, for as long as a block lasts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@contextmanager
def replaced(model: nn.Module, stand_in: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Replace all parameters and buffers of a model, and leave out what PyTorch's distributed engine does in a forward.

    That engine hangs itself into modules by hooks (an all-gather before, a reshard after) and a class of its own. At
    the end of the block everything is as it was, also after an error. `stand_in` gives the tensor to use for the one of
    this name; what has several names goes by the first.
    """
    modules = list(model.modules())
    saved = [(m, type(m), [(d, d.copy()) for d in _held(m)]) for m in modules]
    by_id: dict[int, Tensor] = {}
    for name, tensor in named_tensors(model).items():
        by_id[id(tensor)] = stand_in(name, tensor)
    try:
        for m in modules:
            m.__class__ = _own_class(m)
            held: tuple[dict[str, Any], ...] = (m._parameters, m._buffers)
            for tensors in held:
                tensors.update({key: by_id[id(t)] for key, t in tensors.items() if t is not None})
            for hooks in (getattr(m, name) for name in _HOOKS):
                for key in [k for k, hook in hooks.items() if _of_the_engine(hook)]:
                    del hooks[key]
        yield
    finally:
        for m, cls, contents in saved:
            m.__class__ = cls
            for changed, content in contents:
                changed.clear()
                changed.update(content)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters, then its buffers, by name; what has several names goes by the first."""
    parameters: dict[int, tuple[str, Tensor]] = {}
    buffers: dict[int, tuple[str, Tensor]] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for held, found in ((module._parameters, parameters), (module._buffers, buffers)):
            for key, tensor in held.items() if held else ():
                if tensor is not None and id(tensor) not in found:
                    found[id(tensor)] = prefix + key, tensor
    return dict((*parameters.values(), *buffers.values()))


def meta_parameter(tensor: Tensor) -> Tensor:
    """A plain meta tensor of the shape and dtype of a tensor, sharded or not; a parameter if that is one."""
    plain = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return nn.Parameter(plain, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else plain


class _OnTheCPU(Tensor):
    """A parameter without memory that says it is on the CPU: initialisations put their results there as well."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cpu")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():  # operators take it for what it is
            args, kwargs = tree_map_only(cls, lambda t: t.as_subclass(Tensor), (args, kwargs or {}))
            return func(*args, **kwargs)


def placeless_parameter(tensor: Tensor) -> Tensor:
    """As `meta_parameter`, of a parameter; asked for its device, it says CPU."""
    plain = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    parameter = Tensor._make_subclass(_OnTheCPU, plain, tensor.requires_grad)
    parameter._is_param = True  # type: ignore[attr-defined]  # as nn.Parameter has it
    return parameter


def _held(m: nn.Module) -> list[dict[Any, Any]]:
    return [m._parameters, m._buffers, *(getattr(m, name) for name in _HOOKS)]


def _own_class(m: nn.Module) -> type[nn.Module]:
    """A module's class without what `fully_shard` and `replicate` add; norms are known by their names, for one."""
    index = getattr(type(m), "_orig_cls_mro_index", 2)
    engine = any(_is_engine(c.__module__) for c in type(m).__mro__[:index])
    return type(m).__mro__[index] if engine else type(m)


def _of_the_engine(hook: object) -> bool:
    return _is_engine(getattr(hook, "__module__", None) or "")


def _is_engine(module: str) -> bool:
    return module.startswith(("torch.distributed.fsdp", "torch.distributed._composable", "torch.distributed.tensor"))
