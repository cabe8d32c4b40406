"""Low-rank adapters that add nothing yet (LoRA, arXiv 2106.09685): the network is what it is without them."""

from collections.abc import Mapping

from torch import Tensor

from .reduce import Op
from .tape import Tape

_LAYERS = ("conv", "sep_conv", "dil_conv")
REASON = "of a low-rank adapter that adds nothing yet, as one of its two factors is zero"


def leave_adapters(tape: Tape) -> None:
    """Take branches of two layers, of which one is zero, off the sums that add them to a layer of the same input.

    Predicted values would make the adapted layer compute something else than its weight says.
    """
    for op in tape.ops:
        if op.kind != "sum":
            continue
        for up in op.sources:
            factors = _factors(tape.ops, up)
            if factors is None or not any(_is_zero(tape.parameters, factor.param) for factor in factors):
                continue
            if any(_has_layer_of(tape.ops, other, factors[0].sources) for other in op.sources - {up}):
                op.sources -= {up}
                for factor in factors:
                    tape.explain(factor.param, REASON)


def _factors(ops: list[Op], up: int) -> tuple[Op, Op] | None:
    """The two layers of a branch that has few channels between them."""
    second = ops[up]
    if second.kind not in _LAYERS or len(second.sources) != 1:
        return None
    first = ops[min(second.sources)]
    if first.kind not in _LAYERS or not first.channels or not second.channels or first.channels >= second.channels:
        return None
    return first, second


def _has_layer_of(ops: list[Op], index: int, sources: frozenset[int]) -> bool:
    """Whether a term of a sum is a layer, perhaps with a bias and other adapters, that has these inputs."""
    op = ops[index]
    if op.kind in ("bias", "sum"):
        return any(_has_layer_of(ops, s, sources) for s in op.sources)
    return op.kind in _LAYERS and op.sources == sources


def _is_zero(parameters: Mapping[str, Tensor], name: str) -> bool:
    parameter = parameters[name]
    return type(parameter.data) is Tensor and not parameter.is_meta and not parameter.any()
