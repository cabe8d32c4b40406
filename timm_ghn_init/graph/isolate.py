"""Run a model on stand-in tensors and leave no trace of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def isolated(
    modules: Sequence[nn.Module], parameters: Mapping[str, nn.Parameter], device: str
) -> Iterator[dict[str, Tensor]]:
    """A model in eval mode, every tensor it holds replaced, until the end of the block.

    On "meta" all tensors become meta tensors; elsewhere parameters stay and buffers are copied. Whatever the forward
    does to the modules (mode, caches, counters, hooks) is undone: `__dict__`s and the containers in them are put back.

    Args:
        modules: all modules of the model, itself first.
        parameters: all its parameters, by name.
        device: "meta" or "cpu".

    Yields:
        The stand-ins by the name of the parameter (one for all names of a tied parameter).
    """
    saved = [(m, m.__dict__.copy(), _containers(m.__dict__.values())) for m in modules]
    stand_ins: dict[int, Tensor] = {}

    def stand_in(tensor: Tensor) -> Tensor:
        if id(tensor) not in stand_ins:
            stand_ins[id(tensor)] = _stand_in(tensor, device)
        return stand_ins[id(tensor)]

    names = {name: stand_in(p) for name, p in parameters.items()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operators are opaque
    try:
        for m in modules:
            held: tuple[dict[str, Any], ...] = (m.__dict__, m._parameters, m._buffers)
            for tensors in held:
                for key in [k for k, t in tensors.items() if isinstance(t, Tensor)]:
                    tensors[key] = stand_in(tensors[key])
        modules[0].eval()
        with torch.random.fork_rng(devices=()):  # a forward on the CPU might draw numbers
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


def _containers(values: Iterable[Any]) -> list[tuple[Any, Any]]:
    """The containers among values and in each other, with a copy of their content (most are empty and need none)."""
    found: list[tuple[Any, Any]] = [(v, v.copy() if v else ()) for v in values if isinstance(v, (dict, list, set))]
    for v, content in found.copy():
        if content and not isinstance(v, set):
            found += _containers(v.values() if isinstance(v, dict) else v)
    return found


def _restore(container: Any, content: Any) -> None:
    if container or content:
        container.clear()
        container.extend(content) if isinstance(container, list) else container.update(content)
