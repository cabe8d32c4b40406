"""Which elements of a parameter a tensor consists of.

The operations that lead from the parameter to the tensor are run once more, on the numbers of the elements in place of
their values. Operators that move elements move their numbers; elementwise ones keep them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# Operators that move elements about.
_MOVES = frozenset(
    (
        *("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("permute", "transpose", "t", "expand", "repeat", "tile", "flip", "roll", "clone", "contiguous", "alias"),
        *("slice", "select", "narrow", "split", "split_with_sizes", "chunk", "unbind", "unfold", "detach"),
        *("index", "index_select", "gather", "embedding", "take", "cat", "stack", "constant_pad_nd", "pixel_shuffle"),
    )
)

_ADDS = frozenset(("sum",))
_PRODUCTS = frozenset(("mm", "bmm", "matmul"))
# Those that may lie between one-hot vectors and their product with a table.
_REARRANGE = frozenset(("_to_copy", "clone", "alias", "detach", "permute", "view", "_unsafe_view", "reshape", "expand"))
_MOST_TERMS = 4  # of a sum over a dimension
_LARGEST = 2**24  # elements of a constant


class Lost(Exception):
    """The way from the parameter to the tensor cannot be followed."""


@dataclass(eq=False, slots=True)  # frozen ones take three times as long to make
class _Made:
    """How a tensor was made; tensors among the arguments by how they were made in turn, as far as that is noted."""

    func: Any
    name: str  # of the operator, without its namespace
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: int | None  # which of several
    by_shape: bool  # of the arguments only shapes count
    shape: torch.Size
    dtype: torch.dtype
    storage: int


class Provenance:
    """Notes on tensors that are computed from parameters and constants alone."""

    def __init__(self) -> None:
        self._made: dict[int, _Made] = {}
        self._values: dict[int, Tensor] = {}
        self._written: set[int] = set()

    def know(self, stand_in: Tensor, original: Tensor) -> None:
        """The real values of a stand-in: those of buffers may be indices."""
        self._values[id(stand_in)] = original

    def note(self, func: Any, name: str, args: Any, kwargs: Any, outputs: Sequence[Tensor], by_shape: bool) -> None:
        """An operation on parameters and constants, or on anything `by_shape` alone."""
        args = tuple(map(self._how_made, args))
        kwargs = {key: self._how_made(value) for key, value in kwargs.items()}
        for i, t in enumerate(outputs):
            output = i if len(outputs) > 1 else None
            storage = t.untyped_storage()._cdata
            self._made[id(t)] = _Made(func, name, args, kwargs, output, by_shape, t.shape, t.dtype, storage)

    def _how_made(self, argument: Any) -> Any:
        """An argument, its tensors replaced by how they were made."""
        if isinstance(argument, Tensor):
            return self._made.get(id(argument), argument)
        return [self._how_made(a) for a in argument] if isinstance(argument, (list, tuple)) else argument

    def wrote(self, tensor: Tensor) -> None:
        """Others may be views of the same memory, so nothing is known of it any more."""
        self._written.add(tensor.untyped_storage()._cdata)

    def number(self, constant: Any) -> float | None:
        """The value of a real number, or of a constant tensor that holds one; None of anything else."""
        if isinstance(constant, (int, float)):
            return float(constant)
        made = self._made.get(id(constant), constant)
        if not isinstance(made, (Tensor, _Made)) or made.shape.numel() != 1:
            return None
        try:
            return float(_Replay(self, torch.empty(0)).value(made))
        except Exception:  # it depends on the features, or has no values
            return None

    def factor(self, tensor: Tensor, parameter: Tensor | None) -> float:
        """The constant that a parameter was multiplied by to make a tensor; 1 if more than that was done to it."""
        factor, made = 1.0, self._made.get(id(tensor), tensor)
        while isinstance(made, _Made):
            name = made.name
            if name in ("mul", "div"):
                x, constant = made.args[:2]
                if name == "mul" and not isinstance(x, _Made) and x is not parameter:
                    x, constant = constant, x
                number = self.number(constant)
                if not number:
                    return 1.0
                factor *= 1 / number if name == "div" else number
                made = x
            elif name in _REARRANGE or name in ("t", "transpose"):
                made = made.args[0]
            else:
                return 1.0
        return factor if made is parameter else 1.0

    def numbers(self, tensor: Tensor, parameter: Tensor) -> list[Tensor]:
        """For each element of a tensor the number of the parameter's element that it comes from.

        Args:
            tensor: what was computed.
            parameter: one of those that it was computed from.

        Returns:
            float64 tensors of the tensor's shape on the CPU, one for each time that the parameter enters, NaN where it
            does not.

        Raises:
            Lost: a reduction, an interpolation or a write in place lies in between.
        """
        try:
            found = _Replay(self, parameter).numbers(self._made.get(id(tensor), tensor))
        except Lost:
            raise
        except Exception as error:  # of an operator that does not take the numbers
            raise Lost from error
        if not found:  # it was written in place into something else
            raise Lost
        return found


class _Replay:
    """Runs operations again, on the numbers of one parameter's elements."""

    def __init__(self, known: Provenance, parameter: Tensor) -> None:
        self._known, self._parameter = known, parameter
        self._seen: dict[int, list[Tensor]] = {}

    def numbers(self, of: Tensor | _Made) -> list[Tensor]:
        if of is self._parameter:
            count = self._parameter.numel()
            return [torch.arange(count, dtype=torch.float64, device="cpu").view(self._parameter.shape)]
        if isinstance(of, Tensor):
            return []
        if id(of) not in self._seen:
            self._seen[id(of)] = self._run_again(of)
        return self._seen[id(of)]

    def _run_again(self, made: _Made) -> list[Tensor]:
        operands = {id(a): self.numbers(a) for a in _operands(made)}
        operands = {key: found for key, found in operands.items() if found}
        if not operands:
            return []
        self._check(made)
        name = made.name
        if name not in _MOVES and name not in _ADDS and name not in _PRODUCTS:
            return [torch.broadcast_to(n, made.shape) for found in operands.values() for n in found]
        if len(operands) == 1:
            ((key, found),) = operands.items()
            if name in _ADDS:
                return [part for n in found for part in _terms(n, *made.args[1:])]
            if name in _PRODUCTS:
                rows = self._rows(made.args[0]).unsqueeze(-1)
                return [torch.take_along_dim(n, rows, -2) for n in found]
            return [self._call(made, {key: n}) for n in found]
        if any(len(found) > 1 for found in operands.values()):
            raise Lost
        return [self._call(made, {key: n for key, (n,) in operands.items()})]

    def _call(self, made: _Made, numbers: dict[int, Tensor]) -> Tensor:
        def take(a: Tensor | _Made) -> Tensor:
            if id(a) in numbers:
                return numbers[id(a)]
            if a.dtype.is_floating_point or a.dtype.is_complex:  # something else, that is joined to the parameter
                return torch.full(a.shape, torch.nan, dtype=torch.float64, device="cpu")
            return self.value(a)

        padding = {"value": torch.nan} if "pad" in made.name else {}
        return _call(made, take, **padding)

    def _rows(self, of: Tensor | _Made) -> Tensor:
        """Which entry of each of a constant's vectors is 1, where all others are 0. They can be very long."""
        if isinstance(of, _Made):
            name, shape = of.name, of.shape[:-1]
            if name in _REARRANGE and _keeps_last(of):
                rows = self._rows(of.args[0])
                if name == "permute":
                    return rows.permute(of.args[1][:-1])
                return rows.expand(shape) if name == "expand" else rows.reshape(shape)
            if name == "eq" and of.args[0].shape[-1] == 1 == len(of.args[1].shape):  # as `one_hot` has it
                if not self.value(of.args[1]).equal(torch.arange(of.shape[-1], device="cpu")):
                    raise Lost
                return self.value(of.args[0]).squeeze(-1)
        one_hot = self.value(of)
        if not ((one_hot == 0) | (one_hot == 1)).all() or not (one_hot.sum(-1) == 1).all():
            raise Lost
        return one_hot.byte().argmax(-1)

    def value(self, of: Tensor | _Made) -> Tensor:
        """A constant's values, on the CPU."""
        if of.shape.numel() > _LARGEST:
            raise Lost
        if isinstance(of, Tensor):
            found = self._known._values.get(id(of), of)
            if found.is_meta:
                raise Lost
            return found.detach().cpu()
        self._check(of)
        return _call(of, _of_that_shape if of.by_shape else self.value)

    def _check(self, made: _Made) -> None:
        if made.storage in self._known._written:
            raise Lost


def _terms(numbers: Tensor, dims: Sequence[int] = (), keepdim: bool = False) -> list[Tensor]:
    """The terms of a sum over some dimensions."""
    terms = [numbers]
    for dim in sorted((d % numbers.dim() for d in dims), reverse=True):
        if numbers.shape[dim] > _MOST_TERMS:
            raise Lost
        terms = [part for n in terms for part in (n.split(1, dim) if keepdim else n.unbind(dim))]
    if not dims:
        raise Lost
    return terms


def _keeps_last(made: _Made) -> bool:
    """Whether a rearrangement leaves the last dimension where it is."""
    last = made.args[0].shape[-1] if isinstance(made.args[0], _Made) else None
    is_permuted = made.name == "permute"
    return last == made.shape[-1] and not (is_permuted and made.args[1][-1] % len(made.shape) != len(made.shape) - 1)


def _of_that_shape(of: Tensor | _Made) -> Tensor:
    return torch.zeros(of.shape, dtype=of.dtype, device="cpu")


def _operands(made: _Made) -> list[Tensor | _Made]:
    found: list[Tensor | _Made] = []
    tree_map_only((Tensor, _Made), found.append, (made.args, made.kwargs))
    return found


def _call(made: _Made, take: Callable[[Tensor | _Made], Tensor], **kwargs: Any) -> Tensor:
    """Run an operation again, with other tensors, on the CPU."""
    args, given = tree_map_only((Tensor, _Made), take, (made.args, made.kwargs))
    if given.get("device") is not None:
        given["device"] = torch.device("cpu")
    out = made.func(*args, **{**given, **kwargs})
    return out if made.output is None else out[made.output]
