"""The recipe, as in Section 3 of the paper: trace, embed, decode, write, post-process, report."""

import copy
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from . import assign, baselines
from .checkpoints import load_ghn, resolve_default
from .ghn import GHN
from .graph import Graph, TraceError, model_name, trace
from .postprocessing import auto_layer, check, list_layers, postprocess
from .report import InitReport
from .sources import Source, parse_source

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
) -> InitReport:
    """Initialise a model in place with parameters predicted by a Graph HyperNetwork, or with one of the baselines.

    Everything that can be checked is checked before the first write: where this raises one of the errors below, the
    model is as it was. Parameter identity, dtypes, devices, `requires_grad`, buffers, modes and the global random
    state are never touched.

    Args:
        model: any module that maps a batch of images to logits or features.
        source: what predicts and what is done with the prediction, "NAME[-orth][?key=value&...]"; see
            `list_sources()`. "rand" and "orth" are the baselines that need no GHN (see `baselines`).
        ghn: a hypernetwork to use instead of the one that `source` names.
        input_size: as in `trace`.
        seed: of the post-processing's noise, and of all that a baseline draws. Default: the source's own, else 0.
        device: where to decode and post-process. Default: CUDA where the model is there or one is present, else CPU.
        progress: show progress bars. Default: in a terminal, for what takes longer than two seconds.

    Returns:
        What was predicted, what was not, and why.

    Raises:
        ValueError: unknown source, bad option, a `layer` beyond the last one, parameters on the meta device or sharded,
            a `ghn` for a baseline.
        CheckpointError: the GHN cannot be fetched or read.
        TraceError: the model's forward pass fails or nothing in it is recognised.
        RuntimeError: the prediction is not finite.

    Example:
        >>> report = init_model(torchvision.models.resnet50(), "ghn2-orth?layer=37")
    """
    return initialise(model, parse_source(source), ghn, input_size, seed, device, progress)


def initialise(
    model: nn.Module,
    source: Source,
    ghn: GHN | None = None,
    input_size: int | Sequence[Any] | None = None,
    seed: int | None = None,
    device: str | torch.device | None = None,
    progress: bool | None = None,
    settle: Callable[[list[nn.Parameter]], object] | None = None,
) -> InitReport:
    """`init_model` for a model that may still be waiting for its own initialisation (see `deferred_init`).

    Args:
        settle: called before anything reads or writes a parameter, with those that will be overwritten whole. Only
            its first call counts.
    """
    name = model_name(model)
    _refuse_unwritable(model, name)
    if source.baseline:
        if ghn is not None:
            raise ValueError(f"{source} is an initialisation without a GHN: leave out ghn=, or name another source.")
        report = baselines.initialise(model, source, seed, device, progress, settle)
        _logger.info("%s", report)
        return report
    target = _device(model, device)
    if ghn is None:
        source = resolve_default(source, progress)
        ghn = load_ghn(source, target)
    elif ghn.device != target:
        ghn = copy.deepcopy(ghn).to(target)

    clock = _Clock(target)
    with torch.no_grad(), torch.autocast(target.type, enabled=False):  # float32, whatever the caller is training in
        prepare = None if settle is None else lambda: settle([])
        graph = clock("trace", lambda: trace(model, input_size, ghn.dialect, prepare=prepare))
        names, skipped = _choose(graph, ghn, source)
        if not names:
            raise TraceError(f"{name}: {source} predicts none of its parameters: {skipped}")
        if settle is not None:
            parameters = dict(model.named_parameters())
            settle([parameters[n] for n in names if graph.targets[n].whole])
        layer, seed = _options(model, name, source, seed)
        if source.orth:
            check(model, layer=layer, beta=source.beta, overwritten=names)
        z = clock("embed", lambda: ghn.embed(graph))
        tiles = clock("decode", lambda: ghn.decode(graph, z, names))
        assign.check_finite(tiles, f"{name}, {source}")
        clock("write", lambda: assign.write(model, tiles))
    changed = (
        clock("postprocess", lambda: _postprocess(model, source, layer, seed, target, progress)) if source.orth else []
    )
    report = InitReport(
        model=name,
        source=str(source),
        device=str(target),
        nodes=len(graph.nodes),
        edges=len(graph.edges),
        predicted={n: graph.targets[n].role for n in names},
        skipped=skipped,
        sizes={n: p.numel() for n, p in model.named_parameters()},
        layer=layer if source.orth else None,
        postprocessed=tuple(c.name for c in changed),
        seed=seed if source.orth else None,
        seconds=clock.seconds,
    )
    _logger.info("%s", report)
    return report


def _refuse_unwritable(model: nn.Module, name: str) -> None:
    for parameter, p in model.named_parameters():
        if hasattr(p, "device_mesh"):
            raise ValueError(
                f"{name}: {parameter} is sharded over several devices, which is not supported. "
                "Initialise the model before sharding it."
            )
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


def _choose(graph: Graph, ghn: GHN, source: Source) -> tuple[list[str], dict[str, str]]:
    """Names to predict, and why not the others: a classifier, for instance, of other classes than the GHN's."""
    names, skipped = [], dict(graph.skipped)
    for target in graph.targets.values():
        if not target.classifier:
            names.append(target.param)
        elif not source.classifier:
            skipped[target.param] = "classifier, left alone by classifier=0"
        elif target.shape[0] != ghn.num_classes:
            skipped[target.param] = f"classifier of {target.shape[0]} classes, the GHN predicts {ghn.num_classes}"
        else:
            names.append(target.param)
    return names, skipped


def _options(model: nn.Module, name: str, source: Source, seed: int | None) -> tuple[int, int]:
    """First layer to post-process and seed, where the source leaves them open."""
    layer = auto_layer(name, len(list_layers(model))) if source.layer == "auto" else source.layer
    chosen = next(s for s in (seed, source.seed, 0) if s is not None)
    return layer, chosen


def _postprocess(
    model: nn.Module, source: Source, layer: int, seed: int, device: torch.device, progress: bool | None
) -> list[Any]:
    return postprocess(
        model,
        layer=layer,
        beta=source.beta,
        orthogonal=source.orthogonal,
        seed=seed,
        device=device,
        progress=progress,
    )


class _Clock:
    """Times stages; on CUDA each one to its end."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[stage] = time.perf_counter() - start
        return result
