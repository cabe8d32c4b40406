"""Of modules that are alike one is recorded; what it wrote down is written down again for the others, by their names.

A module is recorded on a tape of its own (`Branch`), which knows nothing but its parameters and, of the operations that
its inputs come from, what a rule may ask of the one right before. If all goes on inside, the piece is kept. If a rule
asks for more, if an input is written to, or if what comes out is not made of features alone, the module runs once more,
on the tape proper, and so do those like it. If it leaves something behind, nothing is certain any more
(`Replay.is_certain`), and the model has to be recorded without replaying.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .alike import alike
from .branch import Branch, Output
from .calls import Call, call_of, moved
from .reduce import NO_OPS, Op
from .tape import Tape, Use


class Records(Protocol):
    """A recorder: where operations are written down, and whether they are."""

    tape: Tape
    pauses: bool


class _Piece(NamedTuple):
    """What a module has written down, by its names. Operations are counted from those that its inputs come from on."""

    names: list[str]
    ops: list[Op]
    uses: list[tuple[str, Use]]
    reasons: dict[str, str]
    picks: frozenset[int]
    outputs: list[Output | None]
    spec: TreeSpec


_BY_OPERATIONS = object()  # in the place of a piece: a rule asks what the operations before it are


class Replay:
    """Lets the modules of a model that are alike be recorded once.

    Args:
        recorder: on the meta device.
        modules: all modules of the model, itself first.
        buffers: what stands in for them, and they.

    Attributes:
        has_begun: whether there was a module to be recorded for others.
        is_certain: whether all that was replayed is what would have been recorded.
    """

    def __init__(
        self, recorder: Records, modules: Sequence[nn.Module], buffers: Sequence[tuple[Tensor, Tensor]]
    ) -> None:
        self.has_begun, self.is_certain = False, True
        self._recorder, tape = recorder, recorder.tape
        self._names = {id(stand_in): name for name, stand_in in tape.stand_ins.items()}
        self._pieces: dict[Hashable, Any] = {}
        self._called: set[int] = set()
        originals = {id(stand_in): original for stand_in, original in buffers}
        originals |= {id(stand_in): tape.parameters[name] for name, stand_in in tape.stand_ins.items()}
        for module, kind in alike(modules, originals):
            module.__dict__["forward"] = partial(self._forward, module, kind)

    def _forward(self, module: nn.Module, kind: int, /, *args: Any, **kwargs: Any) -> Any:
        run = partial(type(module).forward, module, *args, **kwargs)
        call = call_of(self._recorder.tape, kind, args, kwargs)
        again = id(module) in self._called  # what the first call wrote down might decide
        self._called.add(id(module))
        if call is None or again or not self.is_certain:
            return run()
        names = [self._names[id(p)] for m in module.modules() for p in m._parameters.values() if p is not None]
        if any(self._recorder.tape.ops[op].param in names for op in call.before):  # it has been used from outside
            return run()
        piece = self._piece(module, names, call, run)
        return run() if piece is None else self._write(piece, names, call)

    def _piece(self, module: nn.Module, names: list[str], call: Call, run: Callable[[], Any]) -> _Piece | None:
        """What a module like this one has written down; if there was none yet, what this one does."""
        key, by_operations = call.key, (call.key, call.operations)
        if self._pieces.get(key) is _BY_OPERATIONS:
            key = by_operations
        if key not in self._pieces:
            piece, has_asked = self._record(module, names, call, run)
            if has_asked:
                self._pieces[call.key], key = _BY_OPERATIONS, by_operations
            self._pieces[key] = piece
        return self._pieces[key]

    def _record(
        self, module: nn.Module, names: list[str], call: Call, run: Callable[[], Any]
    ) -> tuple[_Piece | None, bool]:
        """What a module writes down, None if that is not its own affair; and whether a rule asked for `operations`."""
        self.has_begun = True
        proper, state = self._recorder.tape, _state(module)
        branch = self._recorder.tape = Branch(proper, module, names, call)
        try:
            leaves, spec = tree_flatten(run())
        finally:
            self._recorder.tape = proper
        outputs = branch.outputs(leaves, call.tensors)
        before = len(call.before)
        piece = _Piece(names, branch.ops[before:], branch.all_uses(), branch.reasons, branch.picks, outputs or [], spec)
        leaves.clear()
        self.is_certain = branch.ended() and _state(module) == state
        is_own = outputs is not None and not branch.looked_outside and self.is_certain
        return piece if is_own else None, branch.asked_what

    def _write(self, piece: _Piece, names: list[str], call: Call) -> Any:
        """Write a piece down under other names; what the module would have put out."""
        tape, own = self._recorder.tape, dict(zip(piece.names, names, strict=True))
        index = [*call.before, *range(len(tape.ops), len(tape.ops) + len(piece.ops))]
        for op in piece.ops:
            copy = object.__new__(Op)
            copy.__dict__.update(op.__dict__)
            copy.sources = frozenset([index[s] for s in op.sources])
            copy.features = frozenset([index[s] for s in op.features]) if op.features else NO_OPS
            copy.param = own[op.param] if op.param else ""
            tape.ops.append(copy)
        for name, use in piece.uses:
            tape.uses.setdefault(own[name], []).append(use._replace(op=index[use.op]))
        for name, reason in piece.reasons.items():
            tape.explain(own[name], reason)
        tape.picks |= {index[op] for op in piece.picks}
        return tree_unflatten([self._output(output, call, index) for output in piece.outputs], piece.spec)

    def _output(self, output: Output | None, call: Call, index: Sequence[int]) -> Tensor | None:
        if output is None or output.given is not None:
            return output and call.tensors[output.given or 0]
        self._recorder.pauses = True
        tensor = torch.empty_strided(output.shape, output.stride, dtype=output.dtype, device="meta")
        self._recorder.pauses = False
        self._recorder.tape.assign(tensor, moved(output.value, index))
        return tensor


def _state(module: nn.Module) -> list[list[int]]:
    """What modules hold, by identity."""
    found = []
    for m in module.modules():
        held = vars(m)
        found.append(
            [id(v) for d in (held, held["_parameters"], held["_buffers"], held["_modules"]) for v in d.values()]
        )
    return found
