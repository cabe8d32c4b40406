"""Run a model on stand-in tensors and leave no trace of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def isolated(model: nn.Module, device: str) -> Iterator[dict[str, Tensor]]:
    """The model in eval mode, every tensor it holds replaced, until the end of the block.

    On "meta" all tensors become meta tensors; elsewhere parameters stay and buffers are copied. Whatever the forward
    does to the modules (mode, caches, counters, hooks) is undone: `__dict__`s and the containers in them are put back.

    Yields:
        The stand-ins by the name of the parameter (one for all names of a tied parameter).
    """
    modules = list(model.modules())
    saved = [(m, dict(m.__dict__), _containers(m)) for m in modules]
    stand_ins: dict[int, Tensor] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) not in stand_ins:
            stand_ins[id(tensor)] = _stand_in(tensor, device)
        return stand_ins[id(tensor)]

    names = {name: stand_in(p) for name, p in model.named_parameters()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operators are opaque
    try:
        for m in modules:
            for tensors in (m.__dict__, m._parameters, m._buffers):
                for key, t in tensors.items():
                    if isinstance(t, Tensor):
                        tensors[key] = stand_in(t)
        model.eval()
        yield names
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for m, attributes, containers in saved:
            m.__dict__.clear()
            m.__dict__.update(attributes)
            for container, content in containers:
                _restore(container, content)


def _stand_in(tensor: Tensor, device: str) -> Tensor:
    if device == "meta":
        return torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return tensor.detach().to(device)
    return tensor.detach().to(device, copy=True)


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    return [(v, v.copy()) for v in module.__dict__.values() if isinstance(v, (dict, list, set))]


def _restore(container: Any, content: Any) -> None:
    container.clear()
    container.extend(content) if isinstance(container, list) else container.update(content)
