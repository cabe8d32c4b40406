"""A model that this process has whole."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..ghn import GHN, Tile
from ..graph import Graph, trace
from ..own_init.stand_ins import named_tensors
from ..own_init.values import forget, materialise, on_meta, own_values, set_values, warn_unset
from ..sources import Source
from ..utils.checks import InputError
from . import assign
from .clock import Clock
from .options import Options
from .pending import Pending
from .place import Place, T
from .plan import Plan
from .postprocessing import Layer, process


class Settle(Protocol):
    """The values that a model is still waiting for (see `deferred_init`)."""

    def __call__(self, overwritten: list[nn.Parameter], /) -> object:
        """Supply them, but for parameters that will be overwritten whole. Only its first call counts."""

    def is_drawn(self, parameter: Tensor, /) -> bool:
        """As `DeferredInit.is_drawn`."""


class Whole(Place):
    """A model that this process has whole.

    Args:
        model: may be on the meta device, or still be waiting for its own initialisation.
        name: of the model.
        seed: of what the model's own initialisation draws.
        options: of these `device` and `init_rest`.
        settle: as in `initialize.initialise`.

    Raises:
        ValueError: a parameter has no memory and cannot be given any here.
    """

    def __init__(self, model: nn.Module, name: str, seed: int, options: Options, settle: Settle | None = None) -> None:
        self.model, self.name = model, name
        self._settle, self._seed, self._init_rest = settle, seed, options.init_rest
        self._without_memory = on_meta(model)
        self._own: dict[str, Tensor] = {}
        if settle is not None and self._without_memory:
            refuse_unwritable(model, name)
        self._home = torch.get_default_device() if options.device is None else torch.device(options.device)
        if self._without_memory and self._home.type == "meta":
            raise InputError(f'{name} and the default device are on meta: say device="cpu", or another.')
        self.device = _device(model, options.device)
        self.clock = Clock(self.device)

    def share(self, what: str, load: Callable[[], tuple[Source, GHN]]) -> tuple[Source, GHN]:
        return load()

    def together(
        self, topic: str, work: Callable[[], T], in_common: Callable[[T], Mapping[str, str]] | None = None
    ) -> T:
        return work()

    def trace(self, dialect: Literal["ghn2", "ghn3"], input_size: Any, example_inputs: Any) -> Graph:
        return trace(self.model, input_size, dialect, prepare=self._prepare, example_inputs=example_inputs)

    def _prepare(self) -> Mapping[str, Tensor] | None:
        """Values for a forward pass that needs them. A model on the meta device stays there, for the pass may fail."""
        if self._settle is not None:
            self._settle([])
            return None
        wanted = self._wanted([])
        return own_values(self.model, wanted, self._seed).values if wanted else None

    def give_values(self) -> None:
        self.give_memory([])
        tensors = named_tensors(self.model)
        for name in self._without_memory:  # what has memory is the user's until all is computed
            if name in self._own:
                tensors[name].detach().copy_(self._own[name])

    def values(self, names: Collection[str]) -> Mapping[str, Tensor]:
        is_drawn = None if self._settle is None else self._settle.is_drawn
        return set_values(self.model, names, is_drawn, lost=bool(self._init_rest))

    def part(self, parameter: Tensor) -> Tensor:
        return parameter

    def give_memory(self, overwritten: list[str]) -> None:
        if self._settle is not None:
            self._settle([self.model.get_parameter(n) for n in overwritten])
            return
        wanted = self._wanted(overwritten)
        if wanted and not self._own:
            self._own, unset = own_values(self.model, wanted, self._seed)
            self.unset = unset
        self._own = {n: value for n, value in self._own.items() if n in set(wanted)}
        self.unset = tuple(n for n in self.unset if n in self._own)
        self.own = tuple(n for n in self._own if n not in self.unset)
        tensors = named_tensors(self.model)
        for name in self._own:
            problem = None if tensors[name].is_meta else assign.locked(tensors[name])
            if problem:
                raise InputError(f"{self.name}: {name} {problem} Nothing was changed.")
        if any(t.is_meta for t in named_tensors(self.model).values()):
            materialise(self.model, self._home)

    def _wanted(self, overwritten: list[str]) -> list[str]:
        """Names of what gets the values of the model's own initialisation."""
        if self._init_rest is False:
            return []
        tensors = named_tensors(self.model) if self._init_rest else self._without_memory
        return [n for n in tensors if n not in set(overwritten)]

    def postprocess(self, plan: Plan, tiles: dict[str, Tile], results: Pending, progress: bool | None) -> None:
        def read(layer: Layer, whole: Tensor) -> None:
            if layer.name in tiles:
                tiles[layer.name].to(self.device).write_(whole)
            else:
                whole.copy_(results.get(layer.name))

        where = {layer.name: self.device for layer in plan.changed}
        process(plan.changed, plan.equations, where, read, results, progress)
        for name in where:
            tiles.pop(name, None)

    @torch.no_grad()
    def write(self, tiles: Mapping[str, Tile], results: Pending, found: Iterable[tuple[Tensor, Tensor]] = ()) -> None:
        tensors = named_tensors(self.model) if self._own else {}
        if tensors:  # before the first write, for memory might be short
            tiles = assign.brought({name: tensors[name].device for name in tiles}, tiles)
        own = [(tensors[name], value) for name, value in self._own.items()]
        for part, value in (*own, *found):
            part.copy_(value)
        assign.write(self.model, tiles)
        assign.write_results(self.model, results)
        warn_unset(self.name, self.unset)

    def take_back(self) -> None:
        forget(self.model, self._without_memory)


def refuse_unwritable(model: nn.Module, name: str) -> None:
    """Raise a ValueError for a model with parameters on the meta device."""
    for parameter, p in model.named_parameters():
        if p.is_meta:
            raise InputError(
                f"{name}: {parameter} is on the meta device, so there is no memory to initialise. "
                'Materialise the model first: model.to_empty(device="cpu").'
            )


def _device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    """CUDA where the model is there or one is present, else the CPU; with its index, so that devices compare equal."""
    if device is None:
        cuda = next((p.device for p in model.parameters() if p.is_cuda), None)
        device = cuda or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device
