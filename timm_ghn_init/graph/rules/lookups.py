"""Rows and elements of a tensor, chosen by indices."""

from typing import Any

from ..tape import Tape, tensors_of
from ..values import Value


def lookup(tape: Tape, args: Any, kwargs: Any, out: Any) -> Value:
    """Indices only select features; a table in which the input is looked up (tokens, classes) is embedded."""
    x = tape.value(args[0])
    if x.origin:
        return x
    return tape.merge([tape.value(t) for t in tensors_of(args, kwargs)], "a table in which the input is looked up")
