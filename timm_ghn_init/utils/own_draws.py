"""Random numbers of other people's code, drawn from a generator of our own instead of the global one.

The global generator belongs to the whole process: to seed it or to put it back for a moment changes what other threads
draw. A dispatch mode belongs to one thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@contextmanager
def own_draws(seed: int) -> Iterator[None]:
    """In this thread, operators draw from a generator of this block instead of the global CPU generator.

    They give what they would have given after `torch.manual_seed(seed)`. The global generator stays as it is.
    """
    with keep_seed(), _OwnDraws(torch.Generator().manual_seed(int(seed))):
        yield


@contextmanager
def keep_seed() -> Iterator[None]:
    """Put the global CPU generator back after a block of code that has seeded it. Draws do not count."""
    generator = torch.default_generator
    seed, state = generator.initial_seed(), generator.get_state()
    try:
        yield
    finally:
        if generator.initial_seed() != seed:
            generator.set_state(state)


def draw(func: Any, args: Any, kwargs: dict[str, Any], generator: torch.Generator) -> Any:
    """Call an operator. If it would draw from the global CPU generator, it draws from `generator`."""
    own = _with_generator(func)
    if own is None or kwargs.get("generator") is not None or not _is_on_cpu(args, kwargs):
        return func(*args, **kwargs)
    return own(*args, **{**kwargs, "generator": generator})


class _OwnDraws(TorchDispatchMode):
    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self._generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return draw(func, args, kwargs or {}, self._generator)


@lru_cache(maxsize=4096)
def _with_generator(func: Any) -> Any:
    """For an operator that draws: its overload that also takes a generator. None for all others.

    A few fused operators (attention, recurrent layers) have no such overload. On the CPU they draw nothing: PyTorch
    takes them apart where there is dropout.
    """
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return None
    names = [a.name for a in func._schema.arguments if a.name != "generator"]
    packet = func.overloadpacket
    for found in (func, *(getattr(packet, name) for name in packet.overloads())):
        own = [a.name for a in found._schema.arguments]
        if "generator" in own and [name for name in own if name != "generator"] == names:
            return found
    return None


def _is_on_cpu(args: Any, kwargs: dict[str, Any]) -> bool:
    tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
    places = [t.device for t in tensors] or [torch.device(kwargs.get("device") or "cpu")]
    return all(place.type == "cpu" for place in places)
