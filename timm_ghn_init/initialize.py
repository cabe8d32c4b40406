"""The front door: whole, sharded or baseline; and the one place where a source becomes what all the rest needs."""

import copy
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checkpoints.load import resolve_default, shared_ghn
from .ghn import GHN
from .graph import model_name, refuse_unsupported
from .recipe import recipe
from .recipe.offer import Resolved
from .recipe.place import Options, Place, Settle
from .recipe.wrappers import bare
from .report import InitReport
from .sources import Source, parse_source
from .utils import ranks
from .utils.checks import InputError
from .utils.text import logger
from .weights import cache as weights_cache
from .weights import hub
from .weights.push import push_predicted
from .weights.timm_config import note_source

if TYPE_CHECKING:
    from .sharded.meeting import Meeting

_logger = logger(__name__)

Constructed = Callable[[Collection[str]], dict[str, Tensor]]


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
    example_inputs: Any = None,
    only: str | Sequence[str] = (),
    skip: str | Sequence[str] = (),
) -> InitReport:
    """Initialise a model in place with parameters predicted by a Graph HyperNetwork, or with another source.

    Everything that can be checked is checked before the first write: where this raises one of the errors below, the
    model is as it was. Parameter identity, dtypes, devices, `requires_grad`, buffers, modes and the global random
    state are never touched.

    A model on the meta device gets memory, and its parameters stay the same objects. If parameters are `DTensor`s
    (FSDP2, any `Shard` and `Replicate` on a mesh of one or two dimensions), every rank of the mesh must call this; the
    result is that of the unsharded model. The first rank of the mesh fetches the GHN for all.

    Args:
        model: any module that maps a batch of images, or what else it takes, to logits or features.
        source: what predicts and what is done with the prediction, `NAME[-orth][?key=value&...]`; see
            `list_sources()`. "rand" and "orth" are the baselines that need no GHN (see `baselines`).
        ghn: a hypernetwork to use instead of the one that `source` names.
        input_size: as in `trace`.
        seed: of the post-processing's noise, and of all that a baseline draws. Default: the source's own, else 0.
        device: where to decode and post-process. Default: CUDA where the model is there or one is present, else CPU.
        progress: whether to show progress. Default: in a terminal, after two seconds.
        cache: keep post-processed parameters on disk, and read them from there the next time. Default: the source's own
            choice, else TIMM_GHN_CACHE, else off. It changes none of them. Not for sharded models.
        init_rest: give what is not predicted, buffers included, the model's own initialisation (`reset_parameters`,
            `init_weights`), drawn from `seed`. Default: what was on the meta device. True: all of it, for a model that
            has been through `to_empty` already. False: none.
        timeout: of sharded models, seconds to wait for another rank. Default: 1800.
        example_inputs: as in `trace`: what the model is called with, where that is not a batch of images.
        only, skip: patterns of parameter names, as `fnmatch` reads them ("backbone.*"), one or several. All that no
            pattern of `only` matches stays as it is, and all that one of `skip` matches. Default: the source's own.

    Returns:
        The report: which parameters were predicted, which were not, and why.

    Raises:
        ValueError: unknown source, bad option, a `layer` beyond the last one, a `ghn` for a baseline; a baseline for
            a model that is sharded; a pattern of `only` or `skip` that matches nothing; parameters sharded in part or
            in a way that is not supported;
            a kind of model that cannot be traced (scripted, exported, lazy, quantised, offloaded, FSDP1).
        CheckpointError: the GHN cannot be fetched or read.
        TraceError: the model's forward pass fails or nothing in it is recognised.
        RuntimeError: the prediction is not finite. For sharded models: a rank is gone, has failed or did not come, or
            ranks differ in what they ask for.

    Example:
        >>> report = init_model(torchvision.models.resnet50(), "ghn2-orth?layer=37")
    """
    with _meeting(model) as meeting:
        source = parse_source(source)
        options = Options(
            ghn, input_size, seed, device, progress, cache, init_rest, timeout, example_inputs, only, skip
        )
        report = initialise(model, source, options, meeting=meeting)
    if source.push:
        push_predicted(model, report)
    return report


def initialise(
    model: nn.Module,
    source: Source,
    options: Options | None = None,
    settle: Settle | None = None,
    constructed: Constructed | None = None,
    meeting: "Meeting | None" = None,
) -> InitReport:
    """`init_model` for a model that may still be waiting for its own initialisation (see `deferred_init`).

    Args:
        settle: what supplies its values. It is called before anything writes a parameter.
        constructed: of a sharded model, gives the values, whole and on the CPU, that its constructor would have given
            to parameters and buffers of these names. Default: those of its `reset_parameters` and `init_weights`.
        meeting: of a sharded model, with the other ranks.
    """
    refuse_unsupported(model, model_name(model))
    options = options or Options()
    with bare(model) as (inner, names):
        seed, name = source.seed_or(options.seed), model_name(inner)
        if meeting is None:
            place = Place(inner, name, seed, options, settle)
        else:
            from .sharded.place import Sharded  # needs PyTorch's distributed engine

            place = Sharded(inner, name, seed, options, meeting, constructed)
        place.given_names = names
        if source.initialisation and options.ghn is not None:
            raise InputError(f"{source} is an initialisation without a GHN: leave out ghn=, or name another source.")
        for part in source.parts if meeting is not None else ():
            _refuse_for_sharded(place, part, options.cache)
        parts = [_resolve(place, part, options) for part in source.parts]
        report = recipe.initialise(place, parts).renamed(names)
    note_source(model, report)
    speaks = place.first and (not place.whole or ranks.share()[0] == 0)
    _logger.log(logging.INFO if speaks else logging.DEBUG, "%s", report)
    return report


def _meeting(model: nn.Module) -> "AbstractContextManager[Meeting | None]":
    """The meeting of the ranks that hold parts of a model, which also learn of errors here; None for a whole model."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    parameters = (p for m in modules for p in m._parameters.values() if type(p) is not nn.Parameter)
    mesh: Any = next((p.device_mesh for p in parameters if hasattr(p, "device_mesh")), None)  # type: ignore[union-attr]
    if mesh is None:
        return nullcontext()
    from .sharded.meeting import Meeting  # needs PyTorch's distributed engine

    return Meeting(model_name(model), mesh)


def finished_key(
    model: nn.Module, source: Source, input_size: int | Sequence[Any] | None = None, seed: int | None = None
) -> tuple[str, str]:
    """The key of what a source would predict for a model, and the name of the Hub repository to look for it in.

    Args:
        model: nothing is written to it; it may be on the meta device.
        source, input_size, seed: as in `init_model`.

    Raises:
        ValueError: the source is a baseline.
        CheckpointError, TraceError: as `init_model`.
    """
    if source.initialisation or source.plus:
        raise InputError(f"{source} is not a GHN alone: there is no prediction to keep.")
    chosen = resolve_default(source.prediction)
    resolved = Resolved(source, chosen, shared_ghn(chosen, torch.device("cpu")))
    name, options = model_name(model), Options(input_size=input_size, seed=seed, device="cpu")
    [plan] = recipe.plan(Place(model, name, source.seed_or(seed), options), [resolved], {})
    return plan.key(model, resolved.digest), hub.repo_name(name, chosen, resolved.digest)


def _resolve(place: Place, source: Source, options: Options) -> Resolved:
    own, keep, org = options.ghn, False, None
    if source.initialisation:
        return Resolved(source, source.prediction, None, cache=bool(source.cache or options.cache))
    if place.whole:
        wanted = source.cache if options.cache is None else options.cache
        keep = weights_cache.is_on() if wanted is None else wanted
        org = hub.organisation(source) if own is None else None  # nobody else has a GHN of one's own

    def load() -> tuple[Source, GHN]:
        if own is not None:
            return source.prediction, own if own.device == place.device else copy.deepcopy(own).to(place.device)
        chosen = resolve_default(source.prediction, options.progress)
        return chosen, shared_ghn(chosen, place.device)

    chosen, ghn = place.share(str(source), load)
    return Resolved(source, chosen, ghn, own is not None, keep, org)


def _refuse_for_sharded(place: Place, source: Source, cache: bool | None) -> None:
    if source.initialisation:
        raise InputError(
            f"{place.name}: {source} gives whole parameters. Initialise the model with it before sharding it."
        )
    wanted = source.cache if cache is None else cache
    if wanted or source.hub or source.push:
        what = "cache" if wanted else "hub" if source.hub else "push"
        raise InputError(
            f"{place.name} is sharded, and {what}= is for models that a process has whole. Leave it out; to keep the "
            "parameters, save them (see `save_sharded`)."
        )
    if weights_cache.is_on(None):
        _logger.info("%s is sharded: TIMM_GHN_CACHE has no effect on it.", place.name)
