"""What a module is called with, as far as the graph can depend on it."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .alike import Unlike, plain
from .reduce import NO_OPS
from .tape import Tape
from .values import Moment, Normed, Value


class Call(NamedTuple):
    """Arguments of a module.

    Attributes:
        key: equal for calls that come to the same, unless a rule asks what `operations` are.
        operations: what those are that the tensors come from.
        tensors: among the arguments.
        values: of the tensors, their operations counted as in `before`.
        before: the model's input, and the operations that the tensors come from.
    """

    key: Hashable
    operations: Hashable
    tensors: list[Tensor]
    values: list[Value]
    before: list[int]


def call_of(tape: Tape, kind: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """None for a call that may be like no other."""
    tensors: list[Tensor] = []
    try:
        outline = _outline(args, tensors), _outline(tuple(kwargs.items()), tensors)
    except Unlike:
        return None
    values = [tape.value(t) for t in tensors]
    if not all(map(is_plain, values)):
        return None
    before = sorted(NO_OPS.union(*map(_operations, values)) - {0})
    before.insert(0, 0)
    places = {op: place for place, op in enumerate(before)}
    values = [moved(value, places) for value in values]
    constants = [id(t) for t, value in zip(tensors, values, strict=True) if not value.origin]
    ops = [tape.ops[op] for op in before]
    lie = [(op.channels, op.grid, op.free) for op in ops]
    what = tuple([(op.kind, bool(op.param), op.shape, op.scores, op.part, op.contracted) for op in ops])
    return Call((kind, outline, *values, *constants, *lie), what, tensors, values, before)


def _outline(thing: Any, tensors: list[Tensor]) -> Hashable:
    """Equal for arguments that differ in nothing but tensors of the same kind. The tensors are collected."""
    if isinstance(thing, Tensor):
        for i, known in enumerate(tensors):
            if known is thing:
                return i
        tensors.append(thing)
        return type(thing), thing.shape, thing.stride(), thing.dtype
    if type(thing) is tuple:
        return tuple([_outline(part, tensors) for part in thing])
    if type(thing) is list:  # a module might write to it
        raise Unlike
    return plain(thing)


def is_plain(value: Value) -> bool:
    """Whether features, or a constant, are all that there is to a value."""
    return not (value.leaves or value.parts or value.attention or isinstance(value.norm, Moment))


def _operations(value: Value) -> frozenset[int]:
    return value.origin | value.norm.of | {value.norm.op} if isinstance(value.norm, Normed) else value.origin


def moved(value: Value, index: Mapping[int, int] | Sequence[int]) -> Value:
    """A plain value, with other numbers for its operations."""
    norm = value.norm
    if isinstance(norm, Normed):
        norm = norm._replace(op=index[norm.op], of=frozenset([index[op] for op in norm.of]))
    return value._replace(origin=frozenset([index[op] for op in value.origin]), norm=norm)
