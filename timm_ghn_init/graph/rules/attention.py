"""Softmax attention, in one fused operator or in two products with a softmax between them."""

from typing import Any

from torch import Tensor

from ..modules import is_layer
from ..reduce import Op
from ..tape import Tape, tensors_of
from ..values import Value


def attention_product(tape: Tape, a: Value, b: Value) -> Value:
    origin = a.origin | b.origin
    if "weights" in (a.attention, b.attention) or any(_is_attention(tape, v.origin) for v in (a, b)):
        return Value(tape.add(Op("msa", origin)))
    return Value(origin, attention="scores")


def _is_attention(tape: Tape, origin: frozenset[int]) -> bool:
    return len(origin) == 1 and tape.ops[next(iter(origin))].kind == "msa"


def softmax(tape: Tape, args: Any, kwargs: Any, out: Tensor) -> Value:
    """Turns attention scores into attention weights; the product that applies those is the `msa`."""
    x = tape.value(args[0])
    return x._replace(attention="weights") if x.origin else x


def attention(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Fused attention: q, k, v and perhaps an additive mask."""
    values = [tape.value(t) for t in tensors_of(args, kwargs)]
    for v in values[3:]:
        demote(tape, v)
    merged = tape.merge(values, "an attention bias or learned query")
    return Value(tape.add(Op("msa", merged.origin))) if merged.origin else merged


def demote(tape: Tape, value: Value) -> None:
    """A product with a parameter that is added to attention scores is a relative position, not a layer."""
    if value.attention:
        return
    for index in value.origin:
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
        tape.uses.pop(op.param, None)
        tape.explain(op.param, "a relative-position table")
