"""Random initialisation, carried out only where its result is kept.

Building a model spends most of its time on drawing random values that a prediction then replaces. Inside a
`DeferredInit` block the operations that draw them are noted down instead. Afterwards they are carried out for the
tensors that keep their values, bit for bit as without the block. They need the state that the generator has at each
operation: a second thread advances the generator while the model is being built, and notes the states.

The generator is only ever advanced, never put back, so another thread that draws from it meanwhile gets no number
twice. An operator that is not known here runs as always, after whatever it reads has been carried out. The block does
not see what reads memory without an operator of PyTorch in the same thread (NumPy, `torch.save`, another thread), nor
who seeds the generator: `deferred_init` says for which constructors the block is safe.
"""

import queue
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from ..utils.own_draws import draw

_aten = torch.ops.aten

# How many 32-bit draws the CPU generator spends on a float32 tensor of n values; None: that depends on more than n.
_DRAWS: dict[Any, Callable[[int], int | None]] = {
    _aten.uniform_.default: lambda n: n,
    # Values come in blocks of 16; if n is no multiple, the last block is drawn a second time.
    _aten.normal_.default: lambda n: None if n < 16 else n + 16 * (n % 16 > 0),
}
_OVERWRITES = (_aten.zero_.default, _aten.fill_.Scalar, _aten.copy_.default)
_SCALINGS = {f"aten::{name}_" for name in ("add", "sub", "mul", "div", "erfinv", "clamp")}
_CHUNK = 1 << 14


def deferred_init(
    create: Callable[..., Any] | None,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    generator: torch.Generator = torch.default_generator,
    seed: int | None = None,
) -> "DeferredInit | None":
    """A `DeferredInit` to build a model in; None where it is not certain that it changes nothing.

    timm's own constructors use nothing but operators. Those of others may do anything, and so may timm's with a class
    or a function of others among their arguments; and another PyTorch may draw otherwise.

    Args:
        create: the function that builds the model, as it is registered with timm; None if that is not known.
        args, kwargs: what it will be given.
        generator: what it draws from, on the CPU.
        seed: as in `DeferredInit`.
    """
    if _get_current_dispatch_mode_stack():  # which sees or changes operators itself
        return None
    timms = (getattr(create, "__module__", None) or "").partition(".")[0] == "timm"
    certain = (
        timms and not torch._C._len_torch_dispatch_stack() and _is_data([*args, *kwargs.values()]) and draws_are_known()
    )
    return DeferredInit(generator, seed) if certain else None


def _is_data(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if is_dataclass(value) and not isinstance(value, type):
        return _is_data(vars(value))
    return value is None or isinstance(value, (str, int, float, PurePath, torch.dtype, torch.device))


class _Call(NamedTuple):
    """An operation that was put off: a random one with the generator's state before it, or one that builds on it."""

    func: Any
    args: Any
    kwargs: Any
    state: list[Tensor] | None


class DeferredInit(TorchDispatchMode):
    """Puts off random in-place initialisation of CPU tensors until `settle`.

    Use it as a context manager around the construction of a model. `close` ends it early, for whatever is to run as
    usual while values are still missing, and `settle` supplies them; leaving the block does both.

    Args:
        generator: what the constructor draws from.
        seed: of the values that tensors really get, so that they are the same every time; only what `settle` is told
            to be new comes from `generator`, which is advanced in either case. Default: all comes from `generator`.
    """

    def __init__(self, generator: torch.Generator = torch.default_generator, seed: int | None = None) -> None:
        super().__init__()
        self._generator = generator
        self._seeded = None if seed is None else torch.Generator().manual_seed(seed)
        self._pending: dict[int, list[_Call]] = {}  # by storage
        self._open = self._settled = False

    def __enter__(self) -> "DeferredInit":
        self._open, self._stream = True, _Stream(self._generator)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()
        try:
            if error[0] is None:
                self.settle(())
        finally:
            self._stream.finish()

    def is_drawn(self, tensor: Tensor) -> bool:
        """Whether a tensor waits for nothing but a random draw. If not, its values are there from now on."""
        key = _storage(tensor)
        calls = self._pending.get(key, [])
        if calls and all(call.state is not None or _is_scaling(call) for call in calls):
            return True
        if calls:
            self._carry_out([key])
        return False

    def settle(self, overwritten: Collection[Tensor], new: Collection[Tensor] = ()) -> None:
        """Carry out what was put off, but for tensors that are about to be overwritten whole. Counts once.

        Args:
            overwritten: those tensors.
            new: tensors that come from the constructor's own generator whatever the seed.

        Afterwards the generator has the state that it would have had without the block.
        """
        self.close()
        if self._settled:
            return
        self._settled = True
        dropped = {_storage(t) for t in overwritten if _covers_storage(t)}
        for key in [k for k in self._pending if k in dropped]:
            del self._pending[key]
        self._carry_out([key for t in new if (key := _storage(t)) in self._pending], new=True)
        self._carry_out(list(self._pending))
        self._stream.wait()

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
            self._pending[keys[0]].append(_Call(func, args, kwargs, None))
            return args[0]
        else:
            self._carry_out(keys)
        return func(*args, **kwargs)

    def _random(self, func: Any, args: Any, kwargs: Any) -> Any:
        x = args[0] if args and isinstance(args[0], Tensor) else None
        known = x is not None and x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous()
        draws = None
        if x is not None and known and func in _DRAWS and kwargs.get("generator") is None:
            draws = _DRAWS[func](x.numel())
        if x is not None and draws is not None:
            call = _Call(func, args, kwargs, self._stream.advance(draws))
            self._pending.setdefault(_storage(x), []).append(call)
            return x
        self._carry_out([_storage(t) for t in _tensors(args, kwargs)])
        self._stream.wait()
        out = draw(func, args, kwargs, self._generator)
        return out if self._seeded is None else draw(func, args, kwargs, self._seeded)

    @torch.no_grad()
    def _carry_out(self, keys: Iterable[int], new: bool = False) -> None:
        calls = [call for key in keys for call in self._pending.pop(key, ())]
        seeded = None if new else self._seeded
        if seeded is None and any(call.state is not None for call in calls):
            self._stream.wait()
        generator = torch.Generator()
        for func, args, kwargs, state in calls:
            if state is not None:
                kwargs = {**kwargs, "generator": seeded or generator.set_state(state[0])}
            func(*args, **kwargs)


class _Stream:
    """A generator that another thread advances; where no thread can be started, the calling one does."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._requests: queue.Queue[tuple[int, list[Tensor]] | None] = queue.Queue()
        self._thread: threading.Thread | None = threading.Thread(target=self._work, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None

    def advance(self, draws: int) -> list[Tensor]:
        """Skip draws; the list returned holds the state before them as soon as `wait` has returned."""
        before: list[Tensor] = []
        if self._thread is None:
            self._skip(draws, before)
        else:
            self._requests.put((draws, before))
        return before

    def wait(self) -> None:
        self._requests.join()

    def finish(self) -> None:
        if self._thread is not None:
            self._requests.put(None)
            self._thread.join()

    def _work(self) -> None:
        while (request := self._requests.get()) is not None:
            self._skip(*request)
            self._requests.task_done()
        self._requests.task_done()

    def _skip(self, draws: int, before: list[Tensor]) -> None:
        before.append(self._generator.get_state())
        skip(self._generator, draws)


def skip(generator: torch.Generator, draws: int) -> None:
    """Advance a CPU generator by a number of 32-bit draws: two for each int64, one for each uint8."""
    pairs = torch.empty(min(draws // 2, _CHUNK), dtype=torch.int64)
    for start in range(0, draws // 2, _CHUNK):
        pairs[: draws // 2 - start].random_(generator=generator)
    torch.empty(draws % 2, dtype=torch.uint8).random_(generator=generator)


@lru_cache(maxsize=1)
def draws_are_known() -> bool:
    """Whether the generator of this PyTorch spends its draws as `_DRAWS` says."""
    for func, draws in _DRAWS.items():
        for n in (16, 37, 4096, 4099):
            one, other = torch.Generator().manual_seed(n), torch.Generator().manual_seed(n)
            func(torch.empty(n), generator=one)
            skip(other, draws(n) or 0)
            if not torch.equal(one.get_state(), other.get_state()):
                return False
    return True


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
