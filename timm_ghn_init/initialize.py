"""The recipe, as in Section 3 of the paper: trace, embed, decode, write, post-process, report."""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import nn

from .checkpoints.load import load_ghn, resolve_default
from .ghn import GHN
from .graph import model_name, trace
from .own_init.stand_ins import named_tensors
from .own_init.values import materialise, on_meta, own_values, warn_unset
from .recipe import assign, baselines
from .recipe.plan import Plan, make_plan
from .recipe.postprocessing import check, postprocess
from .report import InitReport
from .sources import Source, parse_source
from .weights import cache as weights_cache
from .weights import hub
from .weights.key import ghn_digest

_logger = logging.getLogger(__name__)

T = TypeVar("T")


def init_model(
    model: nn.Module,
    source: str | Source = "ghn-orth",
    *,
    ghn: GHN | None = None,
    input_size: int | Sequence[Any] | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    cache: bool | None = None,
    init_rest: bool | None = None,
    timeout: float | None = None,
) -> InitReport:
    """Initialise a model in place with parameters predicted by a Graph HyperNetwork, or with one of the baselines.

    Everything that can be checked is checked before the first write: where this raises one of the errors below, the
    model is as it was. Parameter identity, dtypes, devices, `requires_grad`, buffers, modes and the global random
    state are never touched.

    A model on the meta device gets memory, and its parameters stay the same objects. Where parameters are `DTensor`s
    (FSDP2, any `Shard` and `Replicate` on a mesh of one or two dimensions), every rank of the mesh must call this; the
    result is that of the unsharded model. The first rank of the mesh fetches the GHN for all.

    Args:
        model: any module that maps a batch of images to logits or features.
        source: what predicts and what is done with the prediction, `NAME[-orth][?key=value&...]`; see
            `list_sources()`. "rand" and "orth" are the baselines that need no GHN (see `baselines`).
        ghn: a hypernetwork to use instead of the one that `source` names.
        input_size: as in `trace`.
        seed: of the post-processing's noise, and of all that a baseline draws. Default: the source's own, else 0.
        device: where to decode and post-process. Default: CUDA where the model is there or one is present, else CPU.
        progress: show progress bars. Default: in a terminal, for what takes longer than two seconds.
        cache: keep the predicted parameters on disk, and read them from there the next time. Default: the source's own
            choice, else TIMM_GHN_CACHE, else off. It changes none of them. Not for sharded models.
        init_rest: give what is not predicted, buffers included, the model's own initialisation (`reset_parameters`,
            `init_weights`), drawn from `seed`. Default: what was on the meta device. True: all of it, for a model that
            has been through `to_empty` already. False: none.
        timeout: of sharded models, seconds to wait for another rank. Default: 1800.

    Returns:
        What was predicted, what was not, and why.

    Raises:
        ValueError: unknown source, bad option, a `layer` beyond the last one, a `ghn` for a baseline; a baseline for
            a model that is sharded or on the meta device; parameters sharded in part or in a way that is not supported.
        CheckpointError: the GHN cannot be fetched or read.
        TraceError: the model's forward pass fails or nothing in it is recognised.
        RuntimeError: the prediction is not finite. Of sharded models: a rank is gone, has failed or did not come, or
            ranks differ in what they ask for.

    Example:
        >>> report = init_model(torchvision.models.resnet50(), "ghn2-orth?layer=37")
    """
    source = parse_source(source)
    report = initialise(model, source, Options(ghn, input_size, seed, device, progress, cache, init_rest, timeout))
    if source.push:
        from .weights.push import push_predicted  # above this module, and seldom needed

        push_predicted(model, report)
    return report


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `init_model`, which says what they are."""

    ghn: GHN | None = None
    input_size: int | Sequence[Any] | None = None
    seed: int | None = None
    device: str | torch.device | None = None
    progress: bool | None = None
    cache: bool | None = None
    init_rest: bool | None = None
    timeout: float | None = None


def initialise(
    model: nn.Module,
    source: Source,
    options: Options = Options(),
    settle: Callable[[list[nn.Parameter]], object] | None = None,
) -> InitReport:
    """`init_model` for a model that may still be waiting for its own initialisation (see `deferred_init`).

    Args:
        settle: called before anything reads or writes a parameter, with those that will be overwritten whole. Only
            its first call counts.
    """
    name, ghn = model_name(model), options.ghn
    if any(hasattr(p, "device_mesh") for p in model.parameters()):
        from .sharded.place import initialise as initialise_sharded  # needs PyTorch's distributed engine

        return initialise_sharded(model, source, options)
    fresh, without_memory = None, on_meta(model)
    if options.init_rest or (settle is None and not source.baseline and without_memory):
        fresh = _Fresh(model, name, source, options)
        settle = fresh.settle
    elif without_memory:
        _refuse_unwritable(model, name)
    if source.baseline:
        if ghn is not None:
            raise ValueError(f"{source} is an initialisation without a GHN: leave out ghn=, or name another source.")
        report = baselines.initialise(model, source, options.seed, options.device, options.progress, settle)
        _logger.info("%s", report)
        return report
    use_cache = weights_cache.is_on(source.cache if options.cache is None else options.cache)
    org = hub.organisation(source) if ghn is None else None  # a GHN that nobody else has is not looked for
    source = source.prediction
    target = _device(model, options.device)
    frozen = ghn is None
    if ghn is None:
        source = resolve_default(source, options.progress)
        ghn = load_ghn(source, target)
    elif ghn.device != target:
        ghn = copy.deepcopy(ghn).to(target)

    clock = Clock(target)
    with torch.no_grad(), torch.autocast(target.type, enabled=False):  # float32, whatever the caller is training in
        prepare = None if settle is None else lambda: settle([])
        graph = clock("trace", lambda: trace(model, options.input_size, ghn.dialect, prepare=prepare))
        plan = make_plan(model, name, graph, ghn, source, options.seed)
        if fresh is not None and source.orth:  # before there is memory
            check(model, plan.layer, source.beta, overwritten=plan.names, look_at=_without_values)
        if settle is not None:
            settle([model.get_parameter(n) for n in plan.names if graph.targets[n].whole])
        if source.orth:
            check(model, layer=plan.layer, beta=source.beta, overwritten=plan.names)
        digest = ghn_digest(ghn, frozen) if use_cache or org else ""
        work = _Work(model, name, source, ghn, plan, target, clock, options.progress, digest, use_cache, org)
        report = work.carry_out()
    if fresh is not None:
        report = replace(report, own=fresh.own, unset=fresh.unset)
    _logger.info("%s", report)
    return report


class _Fresh:
    """Memory and the model's own initialisation for what of a model is on the meta device."""

    def __init__(self, model: nn.Module, name: str, source: Source, options: Options) -> None:
        self._model, self._name = model, name
        self._init_rest, self._seed = options.init_rest, source.seed_or(options.seed)
        self._device = torch.get_default_device() if options.device is None else torch.device(options.device)
        self.own: tuple[str, ...] = ()
        self.unset: tuple[str, ...] = ()
        self._settled = False
        if self._device.type == "meta":
            raise ValueError(f'{name} and the default device are on meta: say device="cpu", or another.')

    def settle(self, overwritten: list[nn.Parameter]) -> None:
        """As `deferred_init.DeferredInit.settle`."""
        if self._settled:
            return
        self._settled = True
        model, lost, whole = self._model, set(on_meta(self._model)), {id(p) for p in overwritten}
        tensors = named_tensors(model)
        wanted = [n for n, t in tensors.items() if id(t) not in whole and (self._init_rest or n in lost)]
        materialise(model, self._device)
        if self._init_rest is False:
            return
        values, self.unset = own_values(model, wanted, self._seed)
        tensors = named_tensors(model)
        with torch.no_grad():
            for n, value in values.items():
                tensors[n].copy_(value)
        self.own = tuple(n for n in values if n not in self.unset)
        warn_unset(self._name, self.unset)


@dataclass
class _Work:
    """What is left to do once everything has been checked: fill the parameters, post-process, report.

    The predicted parts come from the cache, else from the Hub, else from the GHN. Both keep them as they are after
    post-processing, as far as that follows from the prediction alone; the `rest` is post-processed here each time.
    """

    model: nn.Module
    name: str
    source: Source
    ghn: GHN
    plan: Plan
    device: torch.device
    clock: "Clock"
    progress: bool | None
    digest: str  # of the GHN; "" where nothing is kept anywhere
    use_cache: bool
    org: str | None  # whose repositories on the Hub to look in

    def __post_init__(self) -> None:
        self.key = self.plan.key(self.model, self.source, self.digest) if self.digest else ""
        # On the Hub are final values, which are of no use where they follow from the prediction in part.
        on_hub = self.org is not None and not set(self.plan.names) & set(self.plan.rest)
        self.repo = f"{self.org}/{hub.repo_name(self.name, self.source, self.digest)}" if on_hub else ""
        self.downloaded = False

    def carry_out(self) -> InitReport:
        targets = self.plan.graph.targets
        parameters = dict(self.model.named_parameters())
        parts = {n: targets[n].part(parameters[n]) for n in self.plan.names}

        def make() -> bool:
            self.downloaded = bool(self.repo) and self.clock(
                "hub", lambda: hub.fill(self.repo, self.key, targets, parts)
            )
            if not self.downloaded:
                self._predict()
                self._postprocess(self.plan.final)  # by now the prediction's own memory is free again
            return not self.downloaded

        def fill() -> bool:
            about = {"model": self.name, "source": str(self.source), "device": str(self.device)}
            return weights_cache.fill(f"{self.key}-{self.device.type}", parts, make, about)

        cached = self.use_cache and self.clock("cache", fill)
        if not self.use_cache:
            make()
        self._postprocess(self.plan.rest)
        return self._report(cached)

    def _predict(self) -> None:
        """Section 2 of the paper."""
        ghn, plan, clock = self.ghn, self.plan, self.clock
        z = clock("embed", lambda: ghn.embed(plan.graph))
        tiles = clock("decode", lambda: ghn.decode(plan.graph, z, plan.names))
        assign.check_finite(tiles, f"{self.name}, {self.source}")
        clock("write", lambda: assign.write(self.model, tiles))

    def _postprocess(self, names: list[str]) -> None:
        if not names:
            return
        source, plan = self.source, self.plan
        options: dict[str, Any] = {"layer": plan.layer, "beta": source.beta, "orthogonal": source.orthogonal}
        options |= {"seed": plan.seed, "device": self.device, "progress": self.progress}
        self.clock("postprocess", lambda: postprocess(self.model, names=names, **options))

    def _report(self, cached: bool) -> InitReport:
        return report_of(
            self.model,
            self.name,
            self.source,
            self.plan,
            self.device,
            self.clock,
            cached=cached,
            key=self.key,
            hub=self.repo,
            downloaded=self.downloaded,
        )


def report_of(
    model: nn.Module, name: str, source: Source, plan: Plan, device: torch.device, clock: "Clock", **more: Any
) -> InitReport:
    """The account of a plan that has been carried out.

    Args:
        more: further attributes of `InitReport`.
    """
    return InitReport(
        model=name,
        source=str(source),
        device=str(device),
        nodes=len(plan.graph.nodes),
        edges=len(plan.graph.edges),
        predicted={n: plan.graph.targets[n].role for n in plan.names},
        skipped=plan.skipped,
        sizes={n: p.numel() for n, p in model.named_parameters()},
        layer=plan.layer if source.orth else None,
        postprocessed=tuple(plan.changed),
        seed=plan.seed if source.orth else None,
        seconds=clock.seconds,
        **more,
    )


def finished_key(
    model: nn.Module, source: Source, input_size: int | Sequence[Any] | None = None, seed: int | None = None
) -> tuple[str, str]:
    """The key of what a source would predict for a model, and the name of the Hub repository to look for it in.

    Args:
        model: nothing is written to it; it may be on the meta device.
        source, input_size, seed: as in `init_model`.

    Raises:
        ValueError: the source is a baseline.
        As `init_model`.
    """
    if source.baseline:
        raise ValueError(f"{source} needs no GHN: there is no prediction to keep.")
    name = model_name(model)
    source = resolve_default(source.prediction)
    ghn = load_ghn(source)
    digest = ghn_digest(ghn, frozen=True)
    plan = make_plan(model, name, trace(model, input_size, ghn.dialect), ghn, source, seed)
    return plan.key(model, source, digest), hub.repo_name(name, source, digest)


def _without_values(weight: torch.Tensor) -> torch.Tensor:
    return weight.new_empty(0, device="cpu")


def _refuse_unwritable(model: nn.Module, name: str) -> None:
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
