"""The recipe for a model whose parameters are DTensors: every rank writes its own part, and post-processing is shared.

A prediction is a small block for each parameter that repeats, so there is nothing to send for it: each rank has all
blocks, and writes what lies in its part. Only post-processing needs whole weights (see `post`).
"""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.load import load_ghn, resolve_default
from ..ghn import GHN, Tile
from ..graph import Graph, TraceError, model_name, trace
from ..initialize import Clock, Options, report_of
from ..own_init.stand_ins import meta_parameter, named_tensors, replaced
from ..own_init.values import materialise, on_meta, own_values, warn_unset
from ..recipe import assign
from ..recipe.plan import Plan, make_plan
from ..recipe.postprocessing import check
from ..report import InitReport
from ..sources import Source, parse_source
from ..threads import one_thread
from ..weights import cache as weights_cache
from ..weights.key import ghn_digest
from .exchange import Exchange, local
from .layout import Layout, layout_of, mesh_of
from .meeting import Meeting
from .post import PostProcessing
from .share import communication_device, share_ghn

_logger = logging.getLogger(__name__)

TIMEOUT = 1800.0  # seconds; that of PyTorch itself, and longer than one rank computes at a layer

ValuesOf = Callable[[Sequence[str]], dict[str, Tensor]]


def initialise(model: nn.Module, source: Source, options: Options, constructed: ValuesOf | None = None) -> InitReport:
    """`init_model` for a model with DTensors among its parameters. All ranks of their mesh must call it.

    Args:
        constructed: gives the values, whole and on the CPU, that the model's constructor would have given to parameters
            and buffers of these names. Default: they get those of its `reset_parameters` and `init_weights`.

    Raises:
        As `init_model`.
        RuntimeError: another rank has failed, did not come, or has another model or other arguments.
    """
    name, ghn = model_name(model), options.ghn
    _bring_back_shards(model)
    mesh = mesh_of(model)
    assert mesh is not None
    members = [int(r) for r in mesh.mesh.flatten()]
    here = members.index(torch.distributed.get_rank()) if torch.distributed.get_rank() in members else -1
    if here < 0:
        layout_of(model, name)  # raises
    seconds = TIMEOUT if options.timeout is None else options.timeout
    meeting = Meeting(name, members, here, seconds)

    def begin() -> Any:
        layout_of(model, name)
        _refuse(name, source, options.cache)
        return _load(source, options.progress, here) if ghn is None else None

    loaded = meeting(f"rank {members[0]} fetches {source}" if ghn is None else "checks", begin)
    layout = layout_of(model, name)
    target = communication_device(layout) if options.device is None else torch.device(options.device)
    asked = str(source.prediction)
    source = parse_source(loaded[0]["source"]) if ghn is None else source.prediction
    clock = Clock(target)
    work = _Work(model, name, layout, source, target, clock, options.init_rest, constructed)
    with torch.no_grad(), torch.autocast(target.type, enabled=False):
        if ghn is None:
            first = load_ghn(source, target) if layout.rank == 0 else None
            ghn = clock("share", lambda: share_ghn(first, loaded[0]["config"], layout, target))
            digest = ""
        else:
            ghn = ghn if ghn.device == target else copy.deepcopy(ghn).to(target)
            digest = ghn_digest(ghn)
        said = meeting(
            "plan and checks",
            lambda: {"source": asked, **work.prepare(ghn, options.input_size, options.seed, digest)},
        )
        _compare(name, said, members)
        work.write()
        if work.plan.changed:
            post = PostProcessing(model, work.plan, source, work.tiles, layout, target)
            exchange = Exchange(layout, name, seconds)
            clock("postprocess", lambda: meeting("post-processing", lambda: post.run(exchange, options.progress)))
    report = work.report()
    _logger.log(logging.INFO if layout.rank == 0 else logging.DEBUG, "%s", report)
    return report


class _Work:
    """What one rank does on its own."""

    def __init__(
        self,
        model: nn.Module,
        name: str,
        layout: Layout,
        source: Source,
        device: torch.device,
        clock: Clock,
        init_rest: bool | None,
        constructed: ValuesOf | None,
    ) -> None:
        self.model, self.name, self.layout, self.source = model, name, layout, source
        self.device, self.clock, self.init_rest, self.constructed = device, clock, init_rest, constructed
        self.plan: Plan
        self.tiles: dict[str, Tile]
        self.own: tuple[str, ...] = ()
        self.unset: tuple[str, ...] = ()

    def prepare(self, ghn: GHN, input_size: Any, seed: int | None, digest: str) -> dict[str, str]:
        """Plan, predict and check; nothing is written. Returns what all ranks must have in common."""
        model, source, clock = self.model, self.source, self.clock
        graph = clock("trace", lambda: _trace(model, input_size, ghn))
        self.plan = plan = make_plan(model, self.name, graph, ghn, source, seed)
        self._rest = self._rest_to_initialise(plan)
        if source.orth:
            without_values = {*plan.names, *self._rest}
            check(model, plan.layer, source.beta, overwritten=without_values, look_at=_look_at)
        z = clock("embed", lambda: ghn.embed(plan.graph))
        self.tiles = clock("decode", lambda: ghn.decode(plan.graph, z, plan.names))
        assign.check_finite(self.tiles, f"{self.name}, {source}")
        placements = {n: [str(x) for x in p.placements] for n, p in model.named_parameters()}  # type: ignore[attr-defined]
        return {
            "model": self.name,
            "seed": str(plan.seed),
            "init_rest": str(self.init_rest),
            "plan (graph, shapes, dtypes, GHN)": plan.key(model, source, digest),
            "mesh": str(self.layout.mesh.mesh.tolist()),
            "placements": hashlib.sha256(json.dumps(placements).encode()).hexdigest(),
            "what is on the meta device": hashlib.sha256(json.dumps(sorted(self._rest)).encode()).hexdigest(),
        }

    def write(self) -> None:
        """All that this rank can do alone: memory, the model's own initialisation, and the predictions."""
        if on_meta(self.model):
            materialise(self.model, communication_device(self.layout))
        if self._rest:
            self.clock("own", self._initialise_rest)
        self.clock("write", self._write)

    def report(self) -> InitReport:
        return report_of(
            self.model, self.name, self.source, self.plan, self.device, self.clock, own=self.own, unset=self.unset
        )

    def _rest_to_initialise(self, plan: Plan) -> list[str]:
        if self.init_rest is False:
            return []
        whole = {n for n in plan.names if plan.graph.targets[n].whole}
        tensors = on_meta(self.model) if self.init_rest is None else list(named_tensors(self.model))
        return [n for n in tensors if n not in whole]

    def _initialise_rest(self) -> None:
        if self.constructed is not None:
            values, self.unset = self.constructed(self._rest), ()
        else:
            values, self.unset = own_values(self.model, self._rest, self.plan.seed)
        tensors = named_tensors(self.model)
        for name, value in values.items():
            tensor = tensors[name]
            if hasattr(tensor, "device_mesh"):
                local(tensor).copy_(self.layout.own_box(tensor).of(value))  # type: ignore[arg-type]
            else:
                tensor.copy_(value)
        self.own = tuple(n for n in values if n not in self.unset)
        if self.layout.rank == 0:
            warn_unset(self.name, self.unset)

    def _write(self) -> None:
        final = set(self.plan.final)  # their owners build them anew
        with one_thread():
            for name, tile in self.tiles.items():
                if name not in final:
                    parameter = self.model.get_parameter(name)
                    part = local(parameter)
                    tile.to(part.device).write_part_(part, self.layout.own_box(parameter).offset)


def _bring_back_shards(model: nn.Module) -> None:
    """After a forward pass FSDP may leave whole parameters in the root."""
    for module in model.modules():
        reshard = getattr(module, "reshard", None)
        if callable(reshard) and hasattr(module, "unshard"):
            reshard()


def _refuse(name: str, source: Source, cache: bool | None) -> None:
    if source.baseline:
        raise ValueError(f"{name}: {source} draws whole parameters. Initialise the model with it before sharding it.")
    wanted = source.cache if cache is None else cache
    if wanted or source.hub or source.push:
        what = "cache" if wanted else "hub" if source.hub else "push"
        raise ValueError(
            f"{name} is sharded, and {what}= is for models that a process has whole. Leave it out; to keep the "
            "parameters, save them (see `save_sharded`)."
        )
    if weights_cache.is_on(None):
        _logger.info("%s is sharded: TIMM_GHN_CACHE has no effect on it.", name)


def _load(source: Source, progress: bool | None, rank: int) -> Any:
    """On the first rank: which source it really is, and the config of its GHN."""
    if rank != 0:
        return None
    source = resolve_default(source.prediction, progress)
    return {"source": str(source), "config": load_ghn(source).config}


def _trace(model: nn.Module, input_size: Any, ghn: GHN) -> Graph:
    try:
        with replaced(model, lambda name, tensor: meta_parameter(tensor)):
            return trace(model, input_size, ghn.dialect, real=False)
    except TraceError as error:
        raise TraceError(f"{error}. If it needs real values: initialise the model before sharding it.") from None


def _look_at(weight: Tensor) -> Tensor:
    return weight.new_empty(0, device="cpu") if weight.is_meta else local(weight)  # type: ignore[arg-type]


def _compare(name: str, said: list[dict[str, str]], members: list[int]) -> None:
    for what, ours in said[0].items():
        others = [m for m, s in zip(members, said, strict=True) if s[what] != ours]
        if others:
            examples = said[members.index(others[0])][what]
            raise RuntimeError(
                f"{name}: rank {', '.join(map(str, others))} and rank {members[0]} differ in {what}: {examples[:80]} "
                f"and {ours[:80]}. All ranks must initialise the same model in the same way. Nothing was written."
            )
