"""Find inputs that a model takes, and record the forward pass with them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..utils.checks import InputError
from ..utils.text import Told, clean, logger
from .inputs import Inputs, attempts, given
from .recorder import ForwardError, Recorder

_logger = logger(__name__)


class TraceError(Told, RuntimeError):
    """The model could not be run or holds nothing that a GHN predicts; the message names it and the way out."""


class _Failure(NamedTuple):
    """A forward pass that raised."""

    inputs: Inputs
    device: str
    error: ForwardError

    def __str__(self) -> str:
        return f"{self.inputs} on {self.device}: {self.error}"


def record(
    model: nn.Module,
    name: str,
    input_size: int | Sequence[Any] | None,
    example_inputs: Any,
    prepare: Callable[[], Mapping[str, Tensor] | None] | None,
    real: bool,
) -> tuple[Recorder, Inputs]:
    """The first forward pass that succeeds: on meta, or on the CPU where it asks for values. As `trace`."""
    failures: list[_Failure] = []

    def run(inputs: Inputs, device: str) -> Recorder | None:
        values = prepare() if device == "cpu" and prepare is not None else None
        recorder = Recorder(model)
        try:
            recorder.run(inputs, device, values or {})
        except ForwardError as error:
            failures.append(_Failure(inputs, device, error))
            return None
        if device == "cpu":
            _logger.info("%s: the forward pass needs real values (%s); traced on the CPU.", name, failures[-1])
            if recorder.unreached and example_inputs is None:
                recorder = _further(recorder, inputs, values or {})
            if recorder.unreached:
                _logger.warning(
                    "%s: the forward pass reads values, and with these inputs it does not reach %s. Pass "
                    "example_inputs=, a tensor, tuple or dict of what the model is called with, with which it does.",
                    name,
                    ", ".join(recorder.unreached[:5]) + (" ..." if len(recorder.unreached) > 5 else ""),
                )
        return recorder

    for inputs in _inputs(model, input_size, example_inputs, failures):
        recorder = run(inputs, "meta")
        if recorder is None and real and "meta" in str(failures[-1].error).lower():  # it asks for values
            recorder = run(inputs, "cpu")
        if recorder is not None:
            return recorder, inputs
    telling = _most_telling(failures)
    for failure in [f for f in telling if real and f.device == "meta"]:
        recorder = run(failure.inputs, "cpu")
        if recorder is not None:
            return recorder, failure.inputs
    raise TraceError(
        f"{name}: the forward pass failed, so its graph cannot be read. Pass input_size=(C, H, W) as the model expects "
        "it, or example_inputs=, a tensor, tuple or dict of what the model is called with. Tried: "
        + "; ".join(clean(failure, 400) for failure in telling)
    )


def _further(first: Recorder, inputs: Inputs, values: Mapping[str, Tensor]) -> Recorder:
    """From a pass on zeros and one on random numbers, the one that reaches more: zeros take one way through a model."""
    second = Recorder(first.model)
    try:
        second.run(inputs, "cpu", values, drawn=True)
    except ForwardError:
        return first
    return second if len(second.unreached) < len(first.unreached) else first


def _inputs(model: nn.Module, input_size: Any, example_inputs: Any, failures: list[_Failure]) -> Iterator[Inputs]:
    if example_inputs is None:
        return attempts(model, input_size, lambda: failures[-1].error.first_layer)
    if input_size is not None:
        raise InputError("Say what the forward pass takes by input_size= or by example_inputs=, not by both.")
    return iter((given(example_inputs),))


def _most_telling(failures: list[_Failure]) -> list[_Failure]:
    """Those two of different errors that got furthest, and of the same error the first."""
    first: dict[str, _Failure] = {}
    for failure in failures:
        first.setdefault(str(failure.error), failure)
    return sorted(first.values(), key=lambda f: f.error.steps, reverse=True)[:2]
