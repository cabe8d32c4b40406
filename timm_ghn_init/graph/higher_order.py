"""Operators that take functions (`torch.cond`, `while_loop`, `scan`, `map` ...): each function is recorded once.

Which branch is taken and how often a body runs depends on values. The graph holds both branches and one run of a body.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from .rules.attention import attention
from .tape import Tape

Rule = Callable[..., Any]


def cond(tape: Tape, predicate: Any, true: Any, false: Any, operands: Sequence[Any] = ()) -> Any:
    """Both branches; what comes out comes from both."""
    out, other = true(*operands), false(*operands)
    for a, b in zip(tree_leaves(out), tree_leaves(other), strict=True):
        _join(tape, a, [a, b])
    tape.pick(tape.value(predicate))
    return out


def while_loop(tape: Tape, condition: Any, body: Any, carried: Sequence[Any], rest: Sequence[Any] = ()) -> Any:
    out = tuple(_listed(body(*carried, *rest)))
    for a in out:  # the next run would mix them
        _join(tape, a, out)
    return out


def scan(tape: Tape, step: Any, carry: Sequence[Any], xs: Sequence[Tensor], rest: Sequence[Any] = ()) -> Any:
    """One step of a recurrence over the first dimension."""
    out = _listed(step(*carry, *(x.select(0, 0) for x in xs), *rest))
    for a in out:
        _join(tape, a, [a, *out[: len(carry)]])
    return (*out[: len(carry)], *_stacked(out[len(carry) :], xs))


def associative_scan(tape: Tape, combine: Any, xs: Sequence[Tensor], rest: Sequence[Any] = ()) -> Any:
    return tuple(_stacked(_listed(combine(*(x.select(0, i) for i in (0, -1) for x in xs), *rest)), xs))


def mapped(tape: Tape, function: Any, xs: Sequence[Tensor], rest: Sequence[Any] = (), **kwargs: Any) -> Any:
    leaves, spec = tree_flatten(function(*(x.select(0, 0) for x in xs), *rest))
    return tree_unflatten(_stacked(leaves, xs), spec)


def called(tape: Tape, *args: Any, **kwargs: Any) -> Any:
    """Any other: its first function is called with the arguments that follow it."""
    at = next(i for i, a in enumerate(args) if callable(a))
    rest = [a for a in args[at + 1 :] if not callable(a) and not isinstance(a, str)]
    return args[at](*(rest[0] if len(rest) == 1 and isinstance(rest[0], (list, tuple)) else rest))


_RULES: dict[str, Rule] = {
    "cond": cond,
    "while_loop": while_loop,
    "scan": scan,
    "associative_scan": associative_scan,
    "map_impl": mapped,
}


def run_once(tape: Tape, operator: Any, args: Any, kwargs: Any) -> Any:
    """The output of an operator when each of its functions runs once; the caller records what they do."""
    return _RULES.get(operator.name(), called)(tape, *args, **kwargs)


def flex_attention(tape: Tape, operator: Any, args: Any, kwargs: Any) -> Any:
    """Attention whose scores a function of the model changes: that runs unseen, and is called once more to be seen."""
    out = operator(*args, **kwargs)
    tape.assign(out[0], attention(tape, args[:3], {}, out[0]))
    return out


def score_function(tape: Tape, query: Tensor, function: Any) -> None:
    """Parameters that flex attention adds to its scores, or multiplies them with, are tables and no layers."""
    score, index = query.new_zeros(()), torch.zeros((), dtype=torch.int64, device=query.device)
    for name in tape.value(function(score, *[index] * 4)).leaves:
        tape.explain(name, "an attention bias or relative-position table")


def _join(tape: Tape, tensor: Any, others: Sequence[Any]) -> None:
    """A tensor comes from all that others come from."""
    if isinstance(tensor, Tensor) and tensor.is_floating_point():
        values = [tape.value(t) for t in others if isinstance(t, Tensor)]
        tape.assign(tensor, tape.merge(list(dict.fromkeys(values)), "an output of a branch or a loop"))


def _stacked(steps: Sequence[Tensor], xs: Sequence[Tensor]) -> list[Tensor]:
    return [y.unsqueeze(0).expand(xs[0].shape[0], *y.shape) for y in steps]


def _listed(out: Any) -> list[Any]:
    return list(out) if isinstance(out, (list, tuple)) else [out]
