"""A model whose parameters are DTensors: every rank holds a part of it, and writes that.

A prediction is a small block for each parameter that repeats, so there is nothing to send for it: each rank has all
blocks, and writes what lies in its part. Only post-processing needs whole weights (see `post`).
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..ghn import GHN, Facts, Tile
from ..graph import Graph, TraceError, trace
from ..own_init.stand_ins import meta_parameter, named_tensors, replaced
from ..own_init.values import materialise, on_meta, own_values, set_values, warn_unset
from ..recipe.assign import brought
from ..recipe.options import Options
from ..recipe.place import Clock, Place, T
from ..recipe.plan import Plan
from ..sources import Source
from ..utils.threads import one_thread
from .layout import layout_of, local
from .meeting import Meeting
from .post import postprocess_parts
from .share import communication_device, share_ghn


class Sharded(Place):
    """A model whose parameters are DTensors. All ranks of their mesh must make one, and do the same with it.

    Args:
        model: with at least one DTensor among its parameters; may be on the meta device.
        name: of the model.
        seed: of what the model's own initialisation draws.
        options: of these `ghn`, `device`, `init_rest` and `timeout`.
        meeting: of the ranks.
        constructed: as in `initialize.initialise`.

    Raises:
        ValueError: as `layout_of`.
    """

    whole = False

    def __init__(
        self,
        model: nn.Module,
        name: str,
        seed: int,
        options: Options,
        meeting: Meeting,
        constructed: Callable[[Collection[str]], dict[str, Tensor]] | None = None,
    ) -> None:
        self.model, self.name = model, name
        self._seed, self._options, self._constructed = seed, options, constructed
        _bring_back_shards(model)
        self.layout = layout_of(model, name)
        self._meeting, self._members = meeting, meeting.members
        meeting.timeout = meeting.timeout if options.timeout is None else options.timeout
        self.first = meeting.rank == 0
        home = communication_device(self.layout.mesh)
        self.device = home if options.device is None else torch.device(options.device)
        self.clock = Clock(self.device)
        self._without_memory: list[str] = []
        self._own: dict[str, Tensor] = {}

    def share(self, what: str, load: Callable[[], tuple[Source, GHN]]) -> tuple[Source, GHN]:
        own = self._options.ghn is not None
        loaded: tuple[Source, GHN] | None = None

        def begin() -> Any:
            nonlocal loaded
            if own or self.first:
                loaded = load()
                return None if own else {"source": asdict(loaded[0]), "ghn": loaded[1].facts.metadata()}
            return None

        said = self._meeting("checks" if own else f"rank {self._members[0]} fetches {what}", begin)
        if own:
            assert loaded is not None
            return loaded
        mine = None if loaded is None else loaded[1]
        facts = Facts.read(said[0]["ghn"])
        ghn = self.clock("share", lambda: share_ghn(mine, facts, self.layout, self.device, self._meeting))
        return Source(**said[0]["source"]), ghn

    def together(
        self, topic: str, work: Callable[[], T], in_common: Callable[[T], Mapping[str, str]] | None = None
    ) -> T:
        results: list[T] = []

        def begin() -> Any:
            results.append(work())
            return None if in_common is None else {**in_common(results[0]), **self._in_common()}

        said = self._meeting(topic, begin)
        if in_common is not None:
            _compare(self.name, said, self._members)
        return results[0]

    def _in_common(self) -> dict[str, str]:
        model = self.model
        placements = {n: [str(x) for x in p.placements] for n, p in model.named_parameters()}  # type: ignore[attr-defined]
        return {
            "init_rest": str(self._options.init_rest),
            "mesh": str(self.layout.mesh.mesh.tolist()),
            "placements": hashlib.sha256(json.dumps(placements).encode()).hexdigest(),
            "what is on the meta device": hashlib.sha256(json.dumps(sorted(on_meta(model))).encode()).hexdigest(),
        }

    def trace(self, dialect: Literal["ghn2", "ghn3"], input_size: Any, example_inputs: Any) -> Graph:
        try:
            with replaced(self.model, lambda name, tensor: meta_parameter(tensor)):
                return trace(self.model, input_size, dialect, real=False, example_inputs=example_inputs)
        except TraceError as error:
            raise TraceError(f"{error}. If it needs real values: initialise the model before sharding it.") from None

    def give_values(self) -> None:
        raise AssertionError("functions are refused for sharded models")

    def values(self, names: Collection[str]) -> Mapping[str, Tensor]:
        return set_values(self.model, names, lost=bool(self._options.init_rest))

    def agreed(self, kept: Mapping[str, str], values: Mapping[str, Tensor]) -> Mapping[str, str]:
        without = [n for n, value in values.items() if not value.numel()]
        said = self._meeting("values set on purpose", lambda: [dict(kept), without])
        seen = {n: why for theirs, _ in said for n, why in theirs.items()}
        return {n: why for n, why in seen.items() if all(n in theirs or n in empty for theirs, empty in said)}

    def part(self, parameter: Tensor) -> Tensor:
        return local(parameter)

    def give_memory(self, overwritten: list[str]) -> None:
        self._without_memory = on_meta(self.model)
        wanted = {None: self._without_memory, True: list(named_tensors(self.model)), False: []}[self._options.init_rest]
        rest = [n for n in wanted if n not in set(overwritten)]
        if rest:
            self.clock("own", lambda: self._own_values(rest))
        if self._without_memory:
            materialise(self.model, communication_device(self.layout.mesh))

    def _own_values(self, names: list[str]) -> None:
        """This rank's part of the model's own values for parameters and buffers of these names."""
        if self._constructed is not None:
            values, self.unset = self._constructed(names), ()
        else:
            values, self.unset = own_values(self.model, names, self._seed)
        tensors = named_tensors(self.model)
        for name, value in values.items():
            sharded = hasattr(tensors[name], "device_mesh")
            self._own[name] = self.layout.own_box(tensors[name]).of(value).clone() if sharded else value
        self.own = tuple(n for n in values if n not in self.unset)

    def postprocess(
        self, plan: Plan, tiles: dict[str, Tile], results: dict[str, Tensor], progress: bool | None
    ) -> None:
        run = partial(postprocess_parts, plan, tiles, results, self.layout, self._meeting, self.device, progress)
        self._meeting("post-processing", run)

    @torch.no_grad()
    def write(
        self, tiles: Mapping[str, Tile], results: dict[str, Tensor], found: Iterable[tuple[Tensor, Tensor]] = ()
    ) -> None:
        tensors = named_tensors(self.model)
        parts = {name: local(tensors[name]) for name in tiles}
        tiles = brought({name: part.device for name, part in parts.items()}, tiles)
        for name, value in self._own.items():
            _local(tensors[name]).copy_(value)
        with one_thread():
            for name, tile in tiles.items():
                tile.write_part_(parts[name], self.layout.own_box(tensors[name]).offset)
        for name in list(results):
            local(tensors[name]).copy_(results.pop(name))
        if self.first:
            warn_unset(self.name, self.unset)


def _local(tensor: Tensor) -> Tensor:
    """This rank's part of a parameter, or a buffer, which each has whole."""
    return local(tensor) if hasattr(tensor, "device_mesh") else tensor


def _bring_back_shards(model: nn.Module) -> None:
    """After a forward pass FSDP may leave whole parameters in the root."""
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if callable(reshard) and hasattr(module, "unshard"):
            reshard()


def _compare(name: str, said: list[dict[str, str]], members: list[int]) -> None:
    for what, ours in said[0].items():
        others = [m for m, s in zip(members, said, strict=True) if s[what] != ours]
        if others:
            examples = said[members.index(others[0])][what]
            raise RuntimeError(
                f"{name}: rank {', '.join(map(str, others))} and rank {members[0]} differ in {what}: {examples[:80]} "
                f"and {ours[:80]}. All ranks must initialise the same model in the same way. Nothing was written."
            )
