"""Run a model on stand-in tensors and leave no trace of it."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode

from ..utils.own_draws import keep_seed
from .undo import Undo

_NO_TENSORS = {dict, OrderedDict, set, tuple, bool, int, float, str, type(None)}  # most attributes, at a glance


class Isolation(NamedTuple):
    """A model that is being run in isolation."""

    parameters: dict[str, Tensor]  # the stand-ins by the name of the parameter, one for all names of a tied one
    buffers: list[tuple[Tensor, Tensor]]  # stand-ins and what they stand for
    undo: Undo  # to be told of memory that is made and written to, where that has values


@contextmanager
def isolated(
    modules: Sequence[nn.Module],
    parameters: Mapping[str, nn.Parameter],
    device: str,
    values: Mapping[str, Tensor] = MappingProxyType({}),
) -> Iterator[Isolation]:
    """A model in eval mode, every tensor it holds replaced, until the end of the block.

    On "meta" all tensors become meta tensors; elsewhere parameters stay and buffers are copied. Whatever the forward
    does to the modules (mode, caches, counters, hooks, values) is undone.

    Args:
        modules: all modules of the model, itself first.
        parameters: all its parameters, by name.
        device: "meta" or "cpu".
        values: on the CPU, instead of the model's own, by name. Without any: zeros.
    """
    undo = Undo(modules)
    named = (*parameters.items(), *modules[0].named_buffers()) if values else ()
    stand_ins = {id(t): values[name] for name, t in named if name in values}

    buffers: list[tuple[Tensor, Tensor]] = []

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) not in stand_ins:
            stand_ins[id(tensor)] = _stand_in(tensor, device)
            buffers.append((stand_ins[id(tensor)], tensor))
        return stand_ins[id(tensor)]

    names = {name: stand_in(p) for name, p in parameters.items()}
    buffers.clear()
    try:
        for m in (*modules, *undo.hidden):
            held: tuple[dict[str, Any], ...] = (m.__dict__, m._parameters, m._buffers)
            for tensors in filter(None, held):
                for key, tensor in tensors.items():
                    if type(tensor) not in _NO_TENSORS and isinstance(tensor, Tensor):
                        tensors[key] = stand_in(tensor)
            m.__dict__.pop("_compiled_call_impl", None)
        _eval(modules)
        for m in undo.hidden:
            m.__dict__["training"] = False  # `eval` does not reach them
        if device != "meta":
            undo.made([copy for copy, _ in buffers], [original for _, original in buffers])
        # On the CPU `nn.MultiheadAttention` would take its fast path, one opaque operator, but for a function mode.
        with keep_seed(), nullcontext() if device == "meta" else BaseTorchFunctionMode():
            yield Isolation(names, buffers, undo)
    finally:
        undo()


def _eval(modules: Sequence[nn.Module]) -> None:
    if _has_own_modes(modules):
        try:
            modules[0].eval()
            return
        except Exception:  # with another meaning or other arguments
            pass
    for m in modules:  # what PyTorch's own does, ten times as fast
        m.__dict__["training"] = False


def _has_own_modes(modules: Sequence[nn.Module]) -> bool:
    """Whether a module has an `eval` or a `train` that is not PyTorch's."""
    classes = {type(m) for m in modules}
    own = any(c.eval is not nn.Module.eval or c.train is not nn.Module.train for c in classes)
    return own or any("eval" in m.__dict__ or "train" in m.__dict__ for m in modules)


def _stand_in(tensor: Tensor, device: str) -> Tensor:
    if device == "meta":
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            return torch.empty_like(tensor, device="meta")
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")  # much faster
    if tensor.is_meta:
        return torch.zeros_like(tensor, device=device)
    if isinstance(tensor, nn.Parameter):
        return tensor.detach().to(device)
    return tensor.detach().to(device, copy=True)
