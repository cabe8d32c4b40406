"""Allowed values: one vocabulary for options of the command line, arguments in Python and keys of sources.

>>> POSITIVE.check("lr", -1)
timm_ghn_init.utils.checks.InputError: lr must be above 0, not -1.
"""

import math
import re
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from .text import Told, clean, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


class InputError(Told, ValueError):
    """An impossible request; the message names the fault and the fix.

    A type of our own, so that the command line can tell it from a ValueError that is a bug.
    """


_MOST = 2**63 - 1  # what PyTorch's whole numbers hold
_NAMESPACE = r"(?!.*(--|\.\.))[A-Za-z0-9]([\w.-]{0,94}\w)?"


@dataclass(frozen=True)
class Kind:
    """A kind of value.

    Attributes:
        wanted: what a value must be, in words.
        valid: whether a value is that.
        parse: makes a value from text, ValueError or KeyError if it cannot; whether it is valid is asked afterwards.
    """

    wanted: str
    valid: Callable[[Any], bool]
    parse: Callable[[str], Any] = str

    def check(self, name: str, value: object) -> None:
        """Raise an InputError that names the argument unless its value is of this kind."""
        if not self.valid(value):
            raise InputError(f"{name} {self.problem(value)}.")

    def read(self, text: str) -> Any:
        """The value that a text stands for.

        Raises:
            InputError: it stands for none of this kind.
        """
        try:
            value = self.parse(text)
            if self.valid(value):
                return value
        except (ValueError, KeyError):
            value = text
        raise InputError(self.problem(value if _too_large(value) else text))

    def problem(self, value: object) -> str:
        """The fault of a value, as a predicate."""
        return f"must be {self.wanted}, not {shown(value)}" + ", which is too large" * _too_large(value)


def check_all(kinds: Mapping[str, Kind], values: Mapping[str, object]) -> None:
    """`Kind.check` for each of several arguments, by name."""
    for name, kind in kinds.items():
        kind.check(name, values[name])


def whole(low: int = 0, high: int = _MOST) -> Kind:
    """Whole numbers from `low` to `high`. True and False are none, NumPy's are."""

    def valid(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high

    return Kind(f"a whole number from {low} {'on' if high == _MOST else f'to {high}'}", valid, _whole)


def number(wanted: str, valid: Callable[[float], bool]) -> Kind:
    """Finite numbers for which `valid` holds."""

    def is_one(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real):
            return False
        try:
            return math.isfinite(value) and valid(float(value))
        except OverflowError:  # a whole number that is too large for a float
            return False

    return Kind(wanted, is_one, _number)


def one_of(*words: str) -> Kind:
    """One of a few words."""
    return Kind(" or ".join(words), lambda value: isinstance(value, str) and value in words)


def either(one: Kind, other: Kind) -> Kind:
    """Values of one kind or of the other."""

    def parse(text: str) -> Any:
        try:
            return one.read(text)
        except ValueError:
            return other.parse(text)

    return Kind(f"{one.wanted}, or {other.wanted}", lambda value: one.valid(value) or other.valid(value), parse)


def or_none(kind: Kind) -> Kind:
    """A kind of value, or None, which leaves the choice to somebody else."""
    return Kind(f"{kind.wanted}, or None", lambda value: value is None or kind.valid(value), kind.parse)


def instance(wanted: str, *types: type) -> Kind:
    """Objects of some types."""
    return Kind(wanted, lambda value: isinstance(value, types))


def check_device(device: Any) -> None:
    """Raise an InputError unless this machine has a device, and it can compute."""
    import torch

    try:
        usable, why = not torch.empty(0, device=device).is_meta, ""  # where nothing has a value
    except Exception as error:  # unknown, or not in this machine or build; the types have nothing in common
        usable, why = False, str(error).partition("\n")[0]
    if not usable:
        raise InputError(
            f"device must be one that can compute, e.g. cpu or cuda:0, not {shown(device)}{why and f': {why}'}."
        )


def check_architecture(name: str) -> None:
    """Raise an InputError unless timm has an architecture of this name, with or without a tag."""
    import timm

    if not timm.is_model(name):
        close = did_you_mean(name.partition(".")[0], timm.list_models())
        raise InputError(f"Unknown architecture {name!r}.{close} timm.list_models() lists all.")


def is_finite(tensor: "Tensor") -> bool:
    """Whether there is no NaN and no inf among the values of a tensor; it takes no temporary of the tensor's size."""
    import torch

    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not (tensor.numel() and tensor.is_floating_point()):
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # NaN if there is one; a GPU is waited for once


def shown(value: object) -> str:
    """A value as errors show it: short, and with nothing in it that steers a terminal."""
    try:
        text = reprlib.repr(value)
    except Exception:  # a whole number of more than 4300 digits, an object whose repr() fails
        return f"that {type(value).__name__}"
    return clean(text)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[-+]?[0-9]+", text):  # int() takes "1_0" and " 1" as well
        raise ValueError(text)
    return int(text)


def _number(text: str) -> float:
    if "_" in text or text != text.strip():
        raise ValueError(text)
    return float(text)


def _too_large(value: object) -> bool:
    return type(value) is int and value > _MOST


FLAG = Kind("True or False", lambda value: type(value) is bool, lambda text: {"0": False, "1": True}[text])
FINITE = number("a finite number", lambda value: True)
POSITIVE = number("above 0", lambda value: value > 0)
NOT_NEGATIVE = number("a finite number from 0 on", lambda value: value >= 0)
PART = number("from 0 up to 1", lambda value: 0 <= value < 1)
SEED = whole(0)
CLASSES = whole(2, 10**6)  # of the classifiers that a GHN predicts
WIDTH = replace(  # of a GHN's node embeddings
    whole(4, 2**14), wanted="a multiple of 4 up to 16384", valid=lambda v: whole(4, 2**14).valid(v) and v % 4 == 0
)
PROCESSES = whole(0, 1024)  # more of them than any machine has cores take it down
NAMESPACE = Kind(
    "the name of a user or an organisation on the Hub",
    lambda value: isinstance(value, str) and re.fullmatch(_NAMESPACE, value, re.A) is not None,
)
