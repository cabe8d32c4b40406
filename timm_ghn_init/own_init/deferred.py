"""Random initialisation, carried out only where its result is kept.

Building a model spends most of its time on drawing random values that a prediction then replaces. Inside a
`DeferredInit` block the operations that draw them are noted down instead. Afterwards they are carried out for the
tensors that keep their values.

An operator that is not known here runs as always, after whatever it reads has been carried out. The block does not see
what reads memory without an operator of PyTorch in the same thread (NumPy, `torch.save`, another thread):
`deferred_init` says for which constructors the block is safe.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from ..utils.own_draws import draw

_aten = torch.ops.aten
_OVERWRITES = (_aten.zero_.default, _aten.fill_.Scalar, _aten.copy_.default)
_SCALINGS = {f"aten::{name}_" for name in ("add", "sub", "mul", "div", "erfinv", "clamp")}


def deferred_init(
    create: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any], seed: int
) -> "DeferredInit | None":
    """A `DeferredInit` to build a model in; None where it is not certain that no value is read too early.

    timm's own constructors use nothing but operators. Those of others may do anything, and so may timm's with a class
    or a function of others among their arguments.

    Args:
        create: the function that builds the model, as it is registered with timm; None if that is not known.
        args, kwargs: what it will be given.
        seed: as in `DeferredInit`.
    """
    if _get_current_dispatch_mode_stack() or torch._C._len_torch_dispatch_stack():  # which change operators themselves
        return None
    timms = (getattr(create, "__module__", None) or "").partition(".")[0] == "timm"
    return DeferredInit(seed) if timms and _is_data([*args, *kwargs.values()]) else None


def _is_data(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if is_dataclass(value) and not isinstance(value, type):
        return _is_data(vars(value))
    return value is None or isinstance(value, (str, int, float, PurePath, torch.dtype, torch.device))


class _Call(NamedTuple):
    """An operation that was put off."""

    func: Any
    args: Any
    kwargs: Any
    random: bool  # or one that builds on such a one


class DeferredInit(TorchDispatchMode):
    """Puts off random in-place initialisation of CPU tensors until `settle`.

    Use it as a context manager around the construction of a model. `close` ends it early, for whatever is to run as
    usual while values are still missing, and `settle` supplies them; leaving the block does both.

    Args:
        seed: of what is drawn, so that values are the same every time. The global generator is not asked, but for what
            `settle` is told to be new.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)
        self._pending: dict[int, list[_Call]] = {}  # by storage
        self._open = self._settled = False

    def __enter__(self) -> "DeferredInit":
        self._open = True
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
        if error[0] is None:
            self.settle(())

    def is_drawn(self, tensor: Tensor) -> bool:
        """Whether a tensor waits for nothing but a random draw. If not, its values are there from now on."""
        key = _storage(tensor)
        calls = self._pending.get(key, [])
        if calls and all(call.random or _is_scaling(call) for call in calls):
            return True
        if calls:
            self._carry_out([key])
        return False

    def settle(self, overwritten: Collection[Tensor], new: Collection[Tensor] = ()) -> None:
        """Carry out what was put off, but for tensors that are about to be overwritten whole. Counts once.

        Args:
            overwritten: those tensors.
            new: tensors that come from the global generator whatever the seed.
        """
        self.close()
        if self._settled:
            return
        self._settled = True
        dropped = {_storage(t) for t in overwritten if _covers_storage(t)}
        for key in [k for k in self._pending if k in dropped]:
            del self._pending[key]
        self._carry_out([_storage(t) for t in new], torch.default_generator)
        self._carry_out(list(self._pending))

    def close(self) -> None:
        """From here on every operation runs as usual, and must not read what has been put off."""
        if self._open:
            self._open = False
            super().__exit__(None, None, None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded in func.tags:
            return self._random(func, args, kwargs)
        if not self._pending:
            return func(*args, **kwargs)
        keys = [key for t in _tensors(args, kwargs) if (key := _storage(t)) in self._pending]
        if not keys or _is_view(func):
            return func(*args, **kwargs)
        if func in _OVERWRITES and keys == [_storage(args[0])] and _covers_storage(args[0]):
            del self._pending[keys[0]]
        elif func._schema.is_mutable and len(_tensors(args, kwargs)) == 1:
            self._pending[keys[0]].append(_Call(func, args, kwargs, False))
            return args[0]
        else:
            self._carry_out(keys)
        return func(*args, **kwargs)

    def _random(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = _tensors(args, kwargs)
        in_place = len(tensors) == 1 and args and args[0] is tensors[0] and func._schema.name.endswith("_")
        if in_place and tensors[0].device.type == "cpu" and kwargs.get("generator") is None:
            self._pending.setdefault(_storage(args[0]), []).append(_Call(func, args, kwargs, True))
            return args[0]
        self._carry_out([_storage(t) for t in tensors])
        return draw(func, args, kwargs, self._generator)

    @torch.no_grad()
    def _carry_out(self, keys: Iterable[int], generator: torch.Generator | None = None) -> None:
        for func, args, kwargs, _ in [call for key in keys for call in self._pending.pop(key, ())]:
            draw(func, args, kwargs, generator or self._generator)


def _tensors(args: Any, kwargs: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for a in (*args, *kwargs.values()):
        found.extend(t for t in (a if isinstance(a, (list, tuple)) else (a,)) if isinstance(t, Tensor))
    return found


def _is_scaling(call: _Call) -> bool:
    """Whether an operation leaves a draw a draw: one that a truncated normal distribution is made by, for instance."""
    name = call.func._schema.name
    return name in _SCALINGS and not (name == "aten::mul_" and call.args[1] == 0)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _covers_storage(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()


def _is_view(func: Any) -> bool:
    """Whether an operator only looks at its argument's memory under another shape."""
    aliases = [r.alias_info for r in func._schema.returns]
    return bool(aliases) and all(a is not None and not a.is_write for a in aliases)
