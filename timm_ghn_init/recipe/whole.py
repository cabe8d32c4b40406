"""A model that this process has whole."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..ghn import GHN, Tile
from ..graph import Graph, trace
from ..own_init.stand_ins import named_tensors
from ..own_init.values import materialise, on_meta, own_values, warn_unset
from ..sources import Source
from . import assign
from .clock import Clock
from .options import Options
from .place import Place, T
from .plan import Plan
from .postprocessing import postprocess

Settle = Callable[[list[nn.Parameter]], object]


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

    def __init__(
        self,
        model: nn.Module,
        name: str,
        seed: int,
        options: Options,
        settle: Settle | None = None,
    ) -> None:
        self.model, self.name = model, name
        without_memory, self._fresh = on_meta(model), None
        if options.init_rest or (settle is None and without_memory):
            self._fresh = _Fresh(self, seed, options)
            settle = self._fresh.settle
        elif without_memory:
            refuse_unwritable(model, name)
        self._settle, self._waiting = settle, settle is not None
        self.device = _device(model, options.device)
        self.clock = Clock(self.device)

    def share(self, load: Callable[[], tuple[Source, GHN]]) -> tuple[Source, GHN]:
        return load()

    def together(
        self, topic: str, work: Callable[[], T], in_common: Callable[[T], Mapping[str, str]] | None = None
    ) -> T:
        return work()

    def trace(self, dialect: Literal["ghn2", "ghn3"], input_size: Any, example_inputs: Any) -> Graph:
        return trace(self.model, input_size, dialect, prepare=self._prepare, example_inputs=example_inputs)

    def _prepare(self) -> Mapping[str, Tensor] | None:
        """Values for a forward pass that needs them. A model on the meta device stays there, for the pass may fail."""
        if self._fresh is not None:
            return self._fresh.values()
        self.give_memory([])
        return None

    def look_at(self, weight: Tensor) -> Tensor:
        return weight.new_empty(0, device="cpu") if self._waiting else weight

    def give_memory(self, overwritten: list[str]) -> None:
        if self._settle is not None and self._waiting:
            self._settle([self.model.get_parameter(n) for n in overwritten])
        self._waiting = False

    def write(self, tiles: dict[str, Tile], later: Collection[str]) -> None:
        assign.write(self.model, tiles)
        tiles.clear()

    def postprocess(self, names: list[str], tiles: Mapping[str, Tile], plan: Plan, progress: bool | None) -> None:
        source = plan.source
        options: dict[str, Any] = {"layer": plan.layer, "beta": source.beta, "orthogonal": source.orthogonal}
        options |= {"seed": plan.seed, "device": self.device, "progress": progress}
        postprocess(self.model, names=names, **options)


class _Fresh:
    """Memory and the model's own initialisation for what of a model is on the meta device."""

    def __init__(self, place: Whole, seed: int, options: Options) -> None:
        self._place, self._seed, self._init_rest = place, seed, options.init_rest
        self._device = torch.get_default_device() if options.device is None else torch.device(options.device)
        if self._device.type == "meta":
            raise ValueError(f'{place.name} and the default device are on meta: say device="cpu", or another.')

    def values(self) -> dict[str, Tensor]:
        """What `settle` would write if nothing were overwritten."""
        model = self._place.model
        wanted = list(named_tensors(model)) if self._init_rest else on_meta(model)
        return {} if self._init_rest is False else own_values(model, wanted, self._seed).values

    def settle(self, overwritten: list[nn.Parameter]) -> None:
        """As `deferred_init.DeferredInit.settle`."""
        place, model = self._place, self._place.model
        lost, whole = set(on_meta(model)), {id(p) for p in overwritten}
        tensors = named_tensors(model)
        wanted = [n for n, t in tensors.items() if id(t) not in whole and (self._init_rest or n in lost)]
        materialise(model, self._device)
        if self._init_rest is False:
            return
        values, place.unset = own_values(model, wanted, self._seed)
        tensors = named_tensors(model)
        with torch.no_grad():
            for n, value in values.items():
                tensors[n].copy_(value)
        place.own = tuple(n for n in values if n not in place.unset)
        warn_unset(place.name, place.unset)


def refuse_unwritable(model: nn.Module, name: str) -> None:
    """Raise a ValueError for a model with parameters on the meta device."""
    for parameter, p in model.named_parameters():
        if p.is_meta:
            raise ValueError(
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
