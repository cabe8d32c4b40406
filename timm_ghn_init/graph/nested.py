"""Tensors in whatever a model takes or gives."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_DEPTH = 5


def tensors_within(thing: Any, name: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Tensor]]:
    """Tensors in tuples, lists, dicts and attributes (e.g. of a dataclass), each with the path of keys to it."""
    if isinstance(thing, Tensor):
        yield name, thing
    elif depth:
        for key, part in _parts(thing):
            yield from tensors_within(part, f"{name}.{key}" if name else str(key), depth - 1)


def _parts(thing: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(thing, Mapping):
        yield from thing.items()
    elif isinstance(thing, PackedSequence):  # the lengths and the order must stay where they are, with their values
        yield "data", thing.data
    elif isinstance(thing, (tuple, list, set, frozenset)):
        yield from zip(getattr(thing, "_fields", range(len(thing))), thing, strict=True)
    elif hasattr(thing, "__dict__") and not isinstance(thing, (nn.Module, type)) and not callable(thing):
        yield from vars(thing).items()
