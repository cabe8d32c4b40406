"""The place of a model's values: this process has them whole here, and in part in `sharded`.

The recipe works on a `Place` and does not ask which of the two it is.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..ghn import GHN, Tile
from ..graph import Dialect, Graph, TraceError, trace_supported
from ..own_init.stand_ins import named_tensors
from ..own_init.values import forget, materialise, on_meta, own_values, set_values, warn_unset
from ..sources import PATTERNS, Source, patterns
from ..utils.checks import FLAG, POSITIVE, SEED, InputError, Kind, check_all, check_device, instance, or_none
from . import assign
from .plan import Plan
from .postprocessing import Layer, compute_device, process

T = TypeVar("T")
_KINDS: dict[str, Kind] = {
    "ghn": or_none(instance("a GHN, as load_ghn returns it", GHN)),
    "seed": or_none(SEED),
    **dict.fromkeys(("progress", "cache", "init_rest"), or_none(FLAG)),
    "timeout": or_none(POSITIVE),
    **dict.fromkeys(("only", "skip"), PATTERNS),
}


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `init_model`, which says what they are. Raises a ValueError for what cannot be."""

    ghn: GHN | None = None
    input_size: int | Sequence[Any] | None = None
    seed: int | None = None
    device: str | torch.device | None = None
    progress: bool | None = None
    cache: bool | None = None
    init_rest: bool | None = None
    timeout: float | None = None
    example_inputs: Any = None
    only: str | Sequence[str] = ()
    skip: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("only", "skip"):
            object.__setattr__(self, name, patterns(getattr(self, name)))
        check_all(_KINDS, vars(self))
        if self.seed is not None:
            object.__setattr__(self, "seed", int(self.seed))  # NumPy's integers are not JSON
        if self.device is not None:
            check_device(self.device)


class Settle(Protocol):
    """The values that a model is still waiting for (see `deferred_init`)."""

    def __call__(self, overwritten: list[nn.Parameter], /) -> object:
        """Supply them, but for parameters that will be overwritten whole. Only its first call counts."""

    def is_drawn(self, parameter: Tensor, /) -> bool:
        """As `DeferredInit.is_drawn`."""


class Clock:
    """Times stages; on CUDA each one to its end. A stage within another counts for itself alone."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        start, before = time.perf_counter(), sum(self.seconds.values())
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        within = sum(self.seconds.values()) - before
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - start - within
        return result


class Place:
    """A model and its memory, all of which this process has.

    Args:
        model: may be on the meta device, or still be waiting for its own initialisation.
        seed: of what the model's own initialisation draws.
        settle: as in `initialize.initialise`.
        home: where a model from the meta device gets memory. Default: the device of `options`, else PyTorch's default.

    Raises:
        ValueError: a parameter has no memory and cannot be given any here.
    """

    whole = True  #: whether this process has all of the model
    first = True  #: whether this process logs, where several do the same
    given_names: Mapping[str, str] = MappingProxyType({})  #: the names of parameters -> names that the user knows
    own: tuple[str, ...] = ()  #: as in `InitReport`, once there is memory, like `unset`
    unset: tuple[str, ...] = ()

    def __init__(
        self,
        model: nn.Module,
        name: str,
        seed: int,
        options: Options,
        settle: Settle | None = None,
        home: torch.device | None = None,
    ) -> None:
        self.model, self.name = model, name
        self._settle, self._seed, self.options = settle, seed, options
        self._graphs: dict[Dialect, Graph] = {}
        self._traceable = True
        self._without_memory = on_meta(model)
        self._own: dict[str, Tensor] = {}
        if settle is not None and self._without_memory:
            raise InputError(
                f"{name}: {self._without_memory[0]} is on the meta device, so there is no memory to initialise. "
                'Materialise the model first: model.to_empty(device="cpu").'
            )
        default = torch.get_default_device() if options.device is None else torch.device(options.device)
        self._home = home or default
        if self._without_memory and self._home.type == "meta":
            raise InputError(f'{name} and the default device are on meta: say device="cpu", or another.')
        self.device = compute_device(model, options.device or home)
        self.clock = Clock(self.device)

    def share(self, what: str, load: Callable[[], tuple[Source, GHN]]) -> tuple[Source, GHN]:
        """The resolved source and its GHN, loaded once for all who work on this model; `what` is for messages."""
        return load()

    def together(
        self, topic: str, work: Callable[[], T], in_common: Callable[[T], Mapping[str, str]] | None = None
    ) -> T:
        """The result of a piece of work; if it fails for one who works on this model, it fails for all.

        All of them must have `in_common` what that makes of the result. The topic is for messages.
        """
        return work()

    def graph(self, dialect: Dialect) -> Graph:
        """The model's graph, which is traced once."""
        if dialect not in self._graphs:
            self._graphs[dialect] = self.clock("trace", lambda: self.trace(dialect))
        return self._graphs[dialect]

    def graph_if_any(self) -> Graph | None:
        """The graph for a source that can do without; None of a model that cannot be traced, which is tried once."""
        if not self._graphs and self._traceable:
            try:
                self.graph("ghn2")
            except TraceError:
                self._traceable = False
        return next(iter(self._graphs.values()), None)

    def trace(self, dialect: Dialect) -> Graph:
        options = self.options
        return trace_supported(
            self.model, options.input_size, dialect, prepare=self._prepare, example_inputs=options.example_inputs
        )

    def _prepare(self) -> Mapping[str, Tensor] | None:
        """Values for a forward pass that needs them. A model on the meta device stays there, for the pass may fail."""
        if self._settle is not None:
            self._settle([])
            return None
        wanted = self._wanted([])
        return own_values(self.model, wanted, self._seed).values if wanted else None

    def _own_values(self, names: list[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """As `own_values`, of the parts that this process has."""
        return own_values(self.model, names, self._seed)

    def give_values(self) -> None:
        """Values for all of the model, so that a function may read any. The model's own initialisation gives them."""
        self.give_memory([])
        tensors = named_tensors(self.model)
        for name in self._without_memory:  # what has memory is the user's until all is computed
            if name in self._own:
                tensors[name].detach().copy_(self._own[name])

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The model's, by name: they stay the same objects."""
        return dict(self.model.named_parameters())

    def values(self, names: Collection[str]) -> Mapping[str, Tensor]:
        """As `set_values`, of the model as its constructor left it."""
        is_drawn = None if self._settle is None else self._settle.is_drawn
        return set_values(self.model, names, is_drawn, lost=bool(self.options.init_rest))

    def agreed(self, kept: Mapping[str, str], values: Mapping[str, Tensor]) -> Mapping[str, str]:
        """The parameters to keep, by what all who work on this model have seen of their `values`."""
        return kept

    def part(self, tensor: Tensor) -> Tensor:
        """The part of a parameter or buffer that this process has, to read and write."""
        return tensor

    def give_memory(self, overwritten: list[str]) -> None:
        """Memory for values that have none, and their own initialisation, unless they will be overwritten whole."""
        if self._settle is not None:
            self._settle([self.model.get_parameter(n) for n in overwritten])
            return
        wanted = self._wanted(overwritten)
        if wanted and not self._own:
            self._own, self.unset = self.clock("own", lambda: self._own_values(wanted))
        self._own = {n: value for n, value in self._own.items() if n in set(wanted)}
        self.unset = tuple(n for n in self.unset if n in self._own)
        self.own = tuple(n for n in self._own if n not in self.unset)
        tensors = named_tensors(self.model) if self._own else {}
        for name in self._own:
            problem = None if tensors[name].is_meta else assign.locked(self.part(tensors[name]))
            if problem:
                raise InputError(f"{self.name}: {name} {problem} Nothing was changed.")
        if self._without_memory:
            materialise(self.model, self._home)

    def _wanted(self, overwritten: list[str]) -> list[str]:
        """Names of what gets the values of the model's own initialisation."""
        if self.options.init_rest is False:
            return []
        tensors = named_tensors(self.model) if self.options.init_rest else self._without_memory
        return [n for n in tensors if n not in set(overwritten)]

    def postprocess(self, plan: Plan, tiles: dict[str, Tile], results: dict[str, Tensor]) -> None:
        """Eq. (1) and (2) on the layers of a plan. Nothing is written.

        Predictions that are used are taken out of `tiles`. The results have the values of a function, and get this
        process's part of what is to be written.
        """

        def read(layer: Layer, whole: Tensor) -> None:
            if layer.name in tiles:
                tiles[layer.name].to(self.device).write_(whole)
            else:
                whole.copy_(results[layer.name])

        process(plan.changed, plan.equations, self.device, read, results, self.options.progress)
        for layer in plan.changed:
            tiles.pop(layer.name, None)

    @torch.no_grad()
    def write(
        self, tiles: Mapping[str, Tile], results: dict[str, Tensor], found: Iterable[tuple[Tensor, Tensor]] = ()
    ) -> None:
        """Write into the parameters, which keep identity, dtype, device and `requires_grad`.

        Results are let go of one by one. What is `found` are parts of parameters, and finished values for them.
        """
        tensors = named_tensors(self.model) if self._own else {}
        # Before the first write, for memory might be short.
        tiles = assign.brought({name: self.part(self.parameters[name]).device for name in tiles}, tiles)
        own = [(self.part(tensors[name]), value) for name, value in self._own.items()]
        for part, value in (*own, *found):
            part.copy_(value)
        self._write_tiles(tiles)
        assign.write_results(self.model, results, self.part)
        if self.first:
            warn_unset(self.name, self.unset)

    def _write_tiles(self, tiles: Mapping[str, Tile]) -> None:
        assign.write(self.parameters, tiles)

    def take_back(self) -> None:
        """Take back what `give_memory` and `give_values` gave: the model is as it was."""
        forget(self.model, self._without_memory)
