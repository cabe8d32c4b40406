"""The tape of one module: what it writes down, as far as that is its own affair."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .calls import Call, is_plain
from .reduce import NO_OPS, Op
from .tape import Tape, Use, tensors_of
from .values import CONSTANT, Value


class Output(NamedTuple):
    """What comes out: the input with this number as it is, or a new tensor."""

    given: int | None
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32
    value: Value = CONSTANT


class _Before(Op):
    """An operation outside of the module. Its branch is told what a rule asks of it."""

    branch: "Branch"

    def __init__(self, op: Op, branch: "Branch") -> None:
        self.__dict__.update(vars(op), branch=branch)


def _asking(name: str) -> property:
    def get(op: _Before) -> Any:
        op.branch.asked_what = True
        return op.__dict__[name]

    def put(op: _Before, value: Any) -> None:
        op.branch.looked_outside = True

    return property(get, put)


def _unknown(name: str) -> property:
    def get(op: _Before) -> frozenset[int]:
        op.branch.looked_outside = True
        return NO_OPS

    return property(get)


for _name in ("kind", "param", "shape", "scores", "part", "contracted"):
    setattr(_Before, _name, _asking(_name))
for _name in ("sources", "features"):
    setattr(_Before, _name, _unknown(_name))


class _Named(dict[str, Tensor]):
    """What is known of a module's parameters by name, and a note where another's was asked for."""

    def __init__(self, names: Sequence[str], tensors: Mapping[str, Tensor], asked: Callable[[], None]) -> None:
        super().__init__({name: tensors[name] for name in names})
        self._all, self._asked = tensors, asked

    def __missing__(self, name: str) -> Tensor:
        self._asked()
        return self._all[name]


class Branch(Tape):
    """The tape of one module.

    Attributes:
        looked_outside: whether a rule, or the module, has asked for anything but the module's own.
        asked_what: whether a rule has asked what the operations are that the inputs come from.
    """

    def __init__(self, proper: Tape, module: nn.Module, names: Sequence[str], call: Call) -> None:
        self.looked_outside = self.asked_what = False
        self.ops = [_Before(proper.ops[op], self) for op in call.before]
        self.parameters = _Named(names, proper.parameters, self._look_outside)  # type: ignore[assignment]
        self.stand_ins = _Named(names, proper.stand_ins, self._look_outside)
        self.batch, self.uses, self.reasons, self.picks = proper.batch, {}, {}, NO_OPS
        self.provenance = proper.provenance.branch()
        self._owners = proper._owners
        self._time, self._writes, self._alive = 0, {}, []
        held = [t for m in module.modules() for t in (*m._parameters.values(), *m._buffers.values()) if t is not None]
        self._values = {id(t): (0, proper.value(t)) for t in held}
        self._values |= {id(t): (0, value) for t, value in zip(call.tensors, call.values, strict=True)}
        self._outside = {t.untyped_storage()._cdata for t in (*held, *call.tensors)}

    def _look_outside(self) -> None:
        self.looked_outside = True

    def see(self, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        """An operation is about to be recorded: are its operands inputs, the module's own, or made in it?"""
        if not all(id(t) in self._values for t in tensors_of(args, kwargs)):
            self.looked_outside = True

    def withdraw(self, name: str) -> None:
        self.looked_outside = True  # there may be others, in other places

    def all_uses(self) -> list[tuple[str, Use]]:
        return [(name, use) for name, uses in self.uses.items() for use in uses]

    def outputs(self, leaves: Sequence[Any], inputs: Sequence[Tensor]) -> list[Output | None] | None:
        """What came out, where that can be made again, and nothing outside was written to; else None."""
        if self.provenance.has_written(self._outside) or not {*self.uses, *self.reasons} <= self.parameters.keys():
            return None
        storages = set(self._outside)
        outputs: list[Output | None] = []
        for leaf in leaves:
            given = next((i for i, t in enumerate(inputs) if t is leaf), None)
            if leaf is None or given is not None:
                outputs.append(None if leaf is None else Output(given))
                continue
            storage = leaf.untyped_storage()._cdata if type(leaf) is Tensor else None
            value = self.value(leaf)
            if storage in (None, *storages) or not (leaf.is_floating_point() and value.origin and is_plain(value)):
                return None
            storages.add(storage)
            outputs.append(Output(None, tuple(leaf.shape), leaf.stride(), leaf.dtype, value))
        return outputs

    def ended(self) -> bool:
        """Let everything go that was made: whether nobody else has kept any of it."""
        made = [weakref.ref(tensor) for tensor in self._alive]
        self._alive.clear()
        self._values.clear()
        self._writes.clear()
        self.provenance.forget()
        return not any(tensor() is not None for tensor in made)
