"""A model whose parameters are DTensors: every rank holds a part of it, and writes that.

A prediction is a small block for each parameter that repeats, so there is nothing to send for it: each rank has all
blocks, and writes what lies in its part. Only post-processing needs whole weights (see `post`).
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..ghn import GHN, Facts, Tile
from ..graph import Dialect, Graph, TraceError, trace_supported
from ..own_init.stand_ins import meta_parameter, named_tensors, replaced
from ..own_init.values import on_meta
from ..recipe.place import Options, Place, T
from ..recipe.plan import Plan
from ..sources import Source
from ..utils.threads import one_thread
from .layout import check_layout, local, own_box
from .meeting import Meeting
from .post import postprocess_parts


class Sharded(Place):
    """A model whose parameters are DTensors. All ranks of their mesh must make one, and do the same with it.

    Raises as `check_layout`. For `constructed` see `initialize.initialise`.
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
        _bring_back_shards(model)
        check_layout(model, name, meeting.mesh)
        super().__init__(model, name, seed, options, home=meeting.device)
        self._meeting, self._constructed = meeting, constructed
        meeting.timeout = meeting.timeout if options.timeout is None else options.timeout
        self.first = meeting.rank == 0

    def share(self, what: str, load: Callable[[], tuple[Source, GHN]]) -> tuple[Source, GHN]:
        meeting, loaded = self._meeting, list[tuple[Source, GHN]]()
        if self.options.ghn is not None:
            meeting("checks", lambda: loaded.append(load()))
            return loaded[0]

        def describe() -> Any:
            if not self.first:
                return None
            source, ghn = load()
            loaded.append((source, ghn))
            return {"source": asdict(source), "ghn": ghn.facts.metadata()}

        said = meeting(f"rank {meeting.members[0]} fetches {what}", describe)[0]

        def begin() -> None:
            if not loaded:
                loaded.append((Source(**said["source"]), _empty(Facts.read(said["ghn"]), self.device)))

        meeting("memory for the GHN", begin)
        self.clock("share", lambda: self._send(loaded[0][1]))
        return loaded[0]

    def _send(self, ghn: GHN) -> None:
        """The values of a GHN from the first rank to all others."""
        tensors = list(ghn.state_dict().values())
        passed = [tensor.to(self._meeting.device).contiguous() for tensor in tensors]
        self._meeting.broadcast(passed, 0, "the GHN")
        for tensor, values in zip(tensors, passed, strict=True):
            if values is not tensor:
                tensor.copy_(values)

    def together(
        self, topic: str, work: Callable[[], T], in_common: Callable[[T], Mapping[str, str]] | None = None
    ) -> T:
        results: list[T] = []

        def begin() -> Any:
            results.append(work())
            return None if in_common is None else {**in_common(results[0]), **self._in_common()}

        said = self._meeting(topic, begin)
        if in_common is not None:
            _compare(self.name, said, self._meeting.members)
        return results[0]

    def _in_common(self) -> dict[str, str]:
        model = self.model
        placements = {n: [str(x) for x in p.placements] for n, p in model.named_parameters()}  # type: ignore[attr-defined]
        return {
            "init_rest": str(self.options.init_rest),
            "mesh": str(self._meeting.mesh.mesh.tolist()),
            "placements": hashlib.sha256(json.dumps(placements).encode()).hexdigest(),
            "what is on the meta device": hashlib.sha256(json.dumps(sorted(on_meta(model))).encode()).hexdigest(),
        }

    def trace(self, dialect: Dialect) -> Graph:
        options = self.options
        try:
            with replaced(self.model, lambda name, tensor: meta_parameter(tensor)):
                inputs = options.example_inputs
                return trace_supported(self.model, options.input_size, dialect, real=False, example_inputs=inputs)
        except TraceError as error:
            raise TraceError(f"{error}. If it needs real values: initialise the model before sharding it.") from None

    def agreed(self, kept: Mapping[str, str], values: Mapping[str, Tensor]) -> Mapping[str, str]:
        without = [n for n, value in values.items() if not value.numel()]
        said = self._meeting("values set on purpose", lambda: [dict(kept), without])
        seen = {n: why for theirs, _ in said for n, why in theirs.items()}
        return {n: why for n, why in seen.items() if all(n in theirs or n in empty for theirs, empty in said)}

    def part(self, tensor: Tensor) -> Tensor:
        return local(tensor)

    def _own_values(self, names: list[str]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        values, unset = (self._constructed(names), ()) if self._constructed else super()._own_values(names)
        tensors = named_tensors(self.model)
        sharded = [n for n in values if isinstance(tensors[n], DTensor)]
        return values | {n: own_box(tensors[n]).of(values[n]).clone() for n in sharded}, unset

    def postprocess(self, plan: Plan, tiles: dict[str, Tile], results: dict[str, Tensor]) -> None:
        run = partial(postprocess_parts, plan, tiles, results, self._meeting, self.device, self.options.progress)
        self._meeting("post-processing", run)

    def _write_tiles(self, tiles: Mapping[str, Tile]) -> None:
        with one_thread():
            for name, tile in tiles.items():
                parameter = self.parameters[name]
                tile.write_part_(local(parameter), own_box(parameter).offset)


def _empty(facts: Facts, device: torch.device) -> GHN:
    """A GHN whose values are still to come."""
    with torch.device("meta"):
        ghn = GHN.of(facts)
    empty = {n: torch.empty(t.shape, dtype=torch.float32, device=device) for n, t in ghn.state_dict().items()}
    ghn.load_state_dict(empty, assign=True)
    return ghn.eval().requires_grad_(False)


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
