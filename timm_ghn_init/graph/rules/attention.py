"""Attention, in one fused operator or in two products. With a softmax between those it is a node, `msa`."""

import math
from typing import Any

from torch import Tensor

from ..modules import is_layer
from ..reduce import NO_OPS, Op
from ..tape import Tape, tensors_of
from ..values import Moment, Value, union


def attention_product(tape: Tape, a: Value, b: Value, out: Tensor) -> Value:
    """A product of two things that depend on the input: of queries and keys, or of that and the values."""
    origin = a.origin | b.origin
    for v in (a, b):
        settle(tape, v)
    if "weights" in (a.attention, b.attention) or any(_is_attention(tape, v.origin) for v in (a, b)):
        return Value(tape.add(Op("msa", origin)))
    if "scores" in (a.attention, b.attention) or out.shape[-1] == 1:
        return Value(origin)  # attention without a softmax has no node: features, or one number for each row
    pairs = math.prod(out.shape[-2:]) if out.shape[-2] > 1 else 0
    return Value(origin, attention="scores", pairs=pairs)


def _is_attention(tape: Tape, origin: frozenset[int]) -> bool:
    return len(origin) == 1 and tape.ops[next(iter(origin))].kind == "msa"


def among_pairs(tape: Tape, x: Value, value: Value, rows: int) -> Value:
    """`value`, what a layer or norm has made of x; where it mixes heads, these are attention scores or weights still.

    Args:
        rows: how many vectors the layer was applied to. Heads are mixed for each query and key; any other layer ends
            an attention that has no softmax, or was none.
    """
    if not x.attention or not x.pairs or rows % x.pairs or rows < tape.batch * x.pairs:
        return value
    return value._replace(attention=x.attention, pairs=x.pairs)


def softmax(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """Turns attention scores into attention weights; the product that applies those is the `msa`."""
    x = tape.value(args[0])
    settle(tape, x)
    return x._replace(attention="weights", norm=None) if x.origin else x


def log_softmax(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """The exponential function of this is attention weights."""
    x = tape.value(args[0])
    return x._replace(norm=Moment(x.origin, logarithm=True)) if x.origin else x


def attention(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Fused attention: q, k, v and perhaps an additive mask."""
    values = [tape.value(t) for t in tensors_of(args, kwargs)]
    for v in values[3:]:
        settle(tape, v)
        _demote(tape, v.origin)
    merged = tape.merge(values, "an attention bias or learned query")
    return Value(tape.add(Op("msa", merged.origin))) if merged.origin else merged


def lookup(tape: Tape, weights: Value, rows: Value) -> Value | None:
    """Attention whose keys and values are rows of one parameter: a codebook, no layer. None if it is none."""
    keys = [tape.ops[i] for i in weights.origin if tape.ops[i].kind == "conv" and tape.ops[i].param in rows.leaves]
    if weights.attention != "weights" or not keys or any(is_layer(tape.owner(op.param)) for op in keys):
        return None
    for op in keys:
        op.contracted = True
        tape.withdraw(op.param)
    return tape.merge((weights, rows), "rows that attention looks up")


def sum_of_scores(tape: Tape, a: Value, b: Value) -> Value:
    """A sum with attention scores in it: its terms are parts of the attention, if one follows."""
    attention = max(a.attention, b.attention)
    if attention == "weights":
        for v in (a, b):
            _demote(tape, v.origin if not v.attention else NO_OPS)
        return union((a, b))._replace(attention=attention, pairs=max(a.pairs, b.pairs))
    plain = NO_OPS.union(*(v.origin for v in (a, b) if not v.attention))
    origin = tape.add(Op("sum", a.origin | b.origin, features=plain, scores=True))
    return Value(origin, attention=attention, pairs=max(a.pairs, b.pairs))


def settle(tape: Tape, x: Value) -> None:
    """These were attention scores: sums among them are no residuals, products with parameters no layers."""
    stack = list(x.origin) if x.attention else []
    while stack:
        op = tape.ops[stack.pop()]
        if op.kind == "sum" and op.scores and not op.contracted:
            op.contracted = True
            _demote(tape, op.features)
            stack.extend(op.sources)


def _demote(tape: Tape, origin: frozenset[int]) -> None:
    """A product with a parameter that is added to attention scores is a relative position, not a layer."""
    for index in origin:
        if _is_table_product(tape, index):
            _contract_table(tape, index)


def _is_table_product(tape: Tape, index: int) -> bool:
    op = tape.ops[index]
    if op.kind == "sum":
        return all(_is_table_product(tape, s) for s in op.sources)
    return op.kind == "conv" and not is_layer(tape.owner(op.param))


def _contract_table(tape: Tape, index: int) -> None:
    op = tape.ops[index]
    op.contracted = True
    if op.kind == "sum":
        for source in op.sources:
            _contract_table(tape, source)
    else:
        tape.withdraw(op.param)
        tape.explain(op.param, "a relative-position table")
