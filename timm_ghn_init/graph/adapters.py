"""Adapters: a low-rank one (LoRA, arXiv 2106.09685) that adds nothing yet is left as it is, others are refused.

An adapter that adds something, or rescales the weight, belongs to the weight that the layer had before: with another
one the network would compute neither what the weight says nor what was adapted.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..utils.checks import InputError
from .neutral import NEUTRAL
from .reduce import Op
from .tape import Tape

_LAYERS = ("conv", "sep_conv", "dil_conv")


def leave_adapters(tape: Tape, modules: Sequence[tuple[str, nn.Module]], model: str) -> None:
    """Take branches of two layers, of which one is zero, off the sums that add them to a layer of the same input.

    Predicted values would make the adapted layer compute something else than its weight says.

    Raises:
        ValueError: an adapter that is not of this kind; it names a parameter of it.
    """
    for op in tape.ops:
        if op.kind != "sum":
            continue
        for up in op.sources & tape.composed:
            if any(_has_layer_of(tape.ops, o, tape.ops[up].sources) for o in op.sources - {up}):
                _refuse(model, tape.ops[up].param)
        for up in op.sources:
            factors = _factors(tape.ops, up)
            if factors is None or not any(_has_layer_of(tape.ops, o, factors[0].sources) for o in op.sources - {up}):
                continue
            if not any(_is_zero(tape.parameters, factor.param) for factor in factors):
                _refuse(model, factors[0].param)
            op.sources -= {up}
            for factor in factors:
                tape.explain(factor.param, NEUTRAL)
    for name in tape.rotations:
        if _is_zero(tape.parameters, name):  # of which a rotation by nothing is computed (OFT)
            _refuse(model, name)
    for names in tape.deltas:
        if not any(_is_zero(tape.parameters, name) for name in names) or names & tape.rescaled:
            _refuse(model, min(names))
    classes = {base for _, module in modules for base in type(module).__mro__}
    tuners = tuple(cls for cls in classes if cls.__module__.startswith("peft.tuners."))
    for path, module in modules if tuners else ():
        if isinstance(module, tuners):
            own = [n for n in tape.parameters if n.startswith(f"{path}.") and not n.startswith(f"{path}.base_layer.")]
            for name in own:
                if tape.reasons.get(name) != NEUTRAL:
                    _refuse(model, name)


def _refuse(model: str, name: str) -> None:
    raise InputError(
        f"{model}: {name} belongs to an adapter that changes what its layer computes, so a predicted weight would not "
        "take effect as it is. Initialise before adding adapters. Nothing was changed."
    )


def is_delta(tape: Tape, weight: frozenset[str], delta: frozenset[str]) -> bool:
    """Whether a sum of two tensors that are computed from parameters is a weight and what an adapter adds to it."""
    if len(weight) != 1 or len(delta) < 2 or weight & delta:
        return False
    size = tape.parameters[next(iter(weight))].numel()
    return all(tape.parameters[name].numel() < size for name in delta)


def _factors(ops: list[Op], up: int) -> tuple[Op, Op] | None:
    """The two layers of a branch that has few channels between them."""
    second = ops[up]
    if second.kind not in _LAYERS or len(second.sources) != 1:
        return None
    first = ops[min(second.sources)]
    if first.kind not in _LAYERS or not first.channels or not second.channels or first.channels * 2 > second.channels:
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
