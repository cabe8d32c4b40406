"""One forward pass, every operation written down as it is dispatched.

`primitives.py` says which rule an operator has, the rules stand in `rules/`, and what they write down in `tape.py`.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._C import _current_autograd_node
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from ..utils.own_draws import draw
from .higher_order import flex_attention, run_once, score_function
from .inputs import Inputs
from .isolate import isolated
from .modules import may_scale, unrolled_once
from .nested import tensors_within
from .neutral import NEUTRAL, neutral_adapters
from .primitives import OPERATORS, Rule, constant
from .rules.moments import running_statistics
from .shapes import infer
from .tape import Tape, tensors_of, written_by
from .values import CONSTANT, FEATURES, Value


class ForwardError(Exception):
    """The model's own code raised; the message says what.

    Attributes:
        steps: how many operations had run.
        first_layer: the module that raised, if no layer had run before it.
    """

    def __init__(self, error: Exception, steps: int, any_layer: bool) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.steps = steps
        self.first_layer = None if any_layer else _innermost(error)


def _innermost(error: Exception) -> nn.Module | None:
    """The module in whose forward an error was raised."""
    found, frame = None, error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_locals.get("self")
        found = module if isinstance(module, nn.Module) else found
        frame = frame.tb_next
    return found


class Recorder(TorchDispatchMode):
    """Runs a model and writes down its operations.

    Attributes:
        tape: what was written down.
        has_values: whether the pass was one on values, which may decide what runs.
        outputs: of the model: the path of keys to each tensor, its shape, and what is known of it.

    Args:
        model: in whatever mode.
    """

    outputs: Sequence[tuple[str, tuple[int, ...], Value]] = ()
    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.named_modules = list(model.named_modules())
        self.modules = [module for _, module in self.named_modules]
        self.tape = Tape(self.named_modules)
        self._adapted = neutral_adapters(self.named_modules)
        self._fault: Exception | None = None
        self._steps = 0
        self._generator = torch.Generator()  # of what a forward draws on the CPU

    def run(self, inputs: Inputs, device: str, values: Mapping[str, Tensor] | None = None, drawn: bool = False) -> None:
        """One forward pass.

        Args:
            inputs: what the model is called with.
            device: "meta" or "cpu".
            values: of parameters and buffers, for a pass on the CPU. Default: their own, or zeros.
            drawn: whether inputs without values are random there instead of zero.

        Raises:
            ForwardError: the model's own code raised.
        """
        tape = self.tape
        with isolated(self.modules, tape.parameters, device, values or {}) as isolation, torch.no_grad():
            self._undo, self.has_values = isolation.undo, device != "meta"
            tape.stand_ins = isolation.parameters
            for name, tensor in isolation.parameters.items():
                if tensor.is_floating_point():
                    tape.assign(tensor, Value(leaves=frozenset((name,))))
                else:
                    tape.explain(name, f"{tensor.dtype} values, and a GHN predicts real numbers")
            placed = inputs.on(device, drawn)
            for x in placed.features:
                tape.assign(x, FEATURES)
            tape.batch, tape.ops[0].grid = inputs.batch or tape.batch, inputs.grid
            for known, original in (*isolation.buffers, *placed.values):
                tape.provenance.know(known, original)
            for buffer in (b for m in self.modules for b in m._buffers.values() if b is not None):
                if buffer.is_floating_point() and 1 < buffer.numel() == max(buffer.shape):
                    tape.assign(buffer, running_statistics(buffer.numel()))
            for module in self.modules:
                if isinstance(module, nn.RNNBase):
                    module.__dict__["forward"] = partial(unrolled_once, module)
                elif may_scale(module):
                    module.__dict__["forward"] = partial(self._inside, module)
            for adapted in self._adapted:
                adapted.module.__dict__["forward"] = adapted.base
                for name in adapted.names:
                    tape.explain(name, NEUTRAL)
            with _uncompiled(), self:
                output = self._call(placed.args, placed.kwargs)
        self.outputs = [(name, tuple(t.shape), tape.value(t)) for name, t in tensors_within(output)]

    def _inside(self, module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        before, self.tape.layer = self.tape.layer, module
        try:
            return type(module).forward(module, *args, **kwargs)
        finally:
            self.tape.layer = before

    @property
    def unreached(self) -> list[str]:
        """Names of the parameters that the forward pass has not come to."""
        return [n for n in self.tape.parameters if n not in self.tape.uses and n not in self.tape.reasons]

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return self.model(*args, **kwargs)
        except Exception as error:  # whatever the model's own code raises
            if self._fault is not None:
                raise self._fault from None
            raise ForwardError(error, self._steps, len(self.tape.ops) > 1) from error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            return self._higher_order(func, args, kwargs)
        operator = _operator(func)
        if operator.consists_of_others:
            with self:
                return func.decompose(*args, **kwargs)
        if operator.name == "aten::empty" and not self.has_values:
            return func(*args, **kwargs)  # batch norms ask for it, and nothing is known of it
        written = written_by(operator.writes, args, kwargs) if operator.writes else ()
        for tensor in written:
            self._undo.keep(tensor)
        out = infer(func, args) if not kwargs else None
        plain = out is not None
        if not plain:
            out = draw(func, args, kwargs, self._generator) if operator.draws else func(*args, **kwargs)
        self._steps += 1
        tape = self.tape
        outputs = [out] if type(out) is Tensor else tensors_of((out,), {})
        if not plain and any(t.is_nested for t in outputs):
            self._fault = ValueError(
                f"{type(self.model).__name__}: its forward pass makes nested tensors (torch.nested), which have no "
                "shape to follow. Nothing was changed. Initialise the same layers in a model that pads or masks."
            )
            raise self._fault
        try:
            if _current_autograd_node() is not None:
                value = tape.derivative(tensors_of(args, kwargs))
            elif not isinstance(args[0] if args else None, Tensor) and not tensors_of(args, kwargs):
                value = CONSTANT  # of Python numbers
            elif operator.rule is None:
                value = tape.contract(operator.name, tensors_of(args, kwargs))
            else:
                value = operator.rule(tape, args, kwargs, out)
        except Exception as fault:  # ours, not the model's
            self._fault = fault
            raise
        for tensor in written:
            tape.write(tensor, value)
            tape.provenance.wrote(tensor)
        if self.has_values:
            self._undo.made(outputs, tensors_of(args, kwargs))
        is_followed = not value.origin or (not (outputs and outputs[0].is_floating_point()) and value == FEATURES)
        if is_followed and not operator.writes:
            name = operator.name.removeprefix("aten::")
            tape.provenance.note(func, name, args, kwargs, outputs, by_shape=operator.rule is constant)
        for tensor in outputs:
            carries = _carries(tensor, value)
            tape.assign(tensor, value if carries else Value(decided_by=value.origin | value.decided_by))
            if not carries:
                tape.pick(value)
        if not outputs and not written:
            tape.pick(value)  # a number
        return out

    def _higher_order(self, func: HigherOrderOperator, args: Any, kwargs: Any) -> Any:
        if func.name() != "flex_attention":
            with self:
                return run_once(self.tape, func, args, kwargs)
        out = flex_attention(self.tape, func, args, kwargs)
        with self:
            score_function(self.tape, args[0], args[3])
        return out


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Let functions from `torch.compile(fullgraph=True)` run as they are written, as all others do while recorded.

    They count the frames that were compiled and refuse to go on where there are none, unless another is counting.
    """
    count = getattr(sys.modules.get("torch._dynamo.eval_frame"), "set_fullgraph_compiled_frame_count", lambda n: n)
    before = count(0)
    try:
        yield
    finally:
        count(before)


class _Operator(NamedTuple):
    """Facts that are the same for every call of an operator, and slow to ask PyTorch for."""

    name: str
    rule: Rule | None
    writes: list[tuple[int, str]]  # position and name of the arguments that it writes to
    draws: bool  # random numbers
    consists_of_others: (
        bool  # as `conv2d` of `convolution`; inference mode and functions of `cond` do not take it apart
    )


@cache
def _operator(func: Any) -> _Operator:
    arguments = func._schema.arguments if func._schema.is_mutable else ()
    writes = [(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    draws = torch.Tag.nondeterministic_seeded in func.tags
    rule = OPERATORS.get(func._schema.name)
    composite = func.namespace != "prim" and func.has_kernel_for_dispatch_key(
        torch._C.DispatchKey.CompositeImplicitAutograd
    )
    return _Operator(func._schema.name, rule, writes, draws, rule is None and composite)


def _carries(tensor: Tensor, value: Value) -> bool:
    """Masks and indices carry no gradient, so they are no features until a layer takes them (see `Tape.features`).

    Whole numbers that come from the input alone may be token ids.
    """
    if tensor.is_floating_point() or tensor.is_complex():
        return True
    return tensor.dtype != torch.bool and value == FEATURES
