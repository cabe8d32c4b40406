"""From options to models, graphs, devices and sources."""

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..sources import DEFAULT, Source, is_source, parse_source
from ..utils.checks import check_architecture, check_device, shown, whole
from ..utils.text import logger
from .messages import UserError, mistakes, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..graph import Graph
    from ..report import InitReport

T = TypeVar("T")
_logger = logger(__name__)

_OPTIONS = {"num_classes": whole(0), "in_chans": whole(1), "img_size": whole(1)}  # have an option of their own
_WEIGHTS = (  # arguments of `create_model` that name weights
    *("model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
    *("checkpoint_path", "cache_dir"),
)


def build(args: argparse.Namespace) -> "tuple[nn.Module, dict[str, Any]]":
    """The architecture with timm's own initialisation, and the options that it took.

    Raises:
        UserError: no such architecture, or options that it does not take.
    """
    _check_architecture(args.arch)
    options = model_options(args)
    try:
        return _create(args, options)
    except Exception as error:  # of any type: raised by a model's own code
        if not options or isinstance(error, UserError):
            raise
        _logger.debug("%s:", args.arch, exc_info=True)
        given = ", ".join(f"{name}={shown(value)}" for name, value in options.items())
        raise UserError(f"{args.arch} cannot be built with {given}: {one_line(error)[:300]}") from error


def _create(args: argparse.Namespace, options: dict[str, Any]) -> "tuple[nn.Module, dict[str, Any]]":
    import timm

    try:
        return timm.create_model(args.arch, pretrained=False, **options), options
    except TypeError as error:
        if "unexpected keyword argument 'img_size'" not in str(error) or args.img_size is None:
            raise
    options = {name: value for name, value in options.items() if name != "img_size"}  # it takes images of any size
    return timm.create_model(args.arch, pretrained=False, **options), options


def with_weights(args: argparse.Namespace, pretrained: bool) -> "nn.Module":
    """The architecture, with timm's weights if `pretrained`."""
    import timm

    model, options = build(args)
    return timm.create_model(args.arch, pretrained=True, **options) if pretrained else model


def _check_architecture(arch: str) -> None:
    import timm

    check_architecture(arch)
    name, _, tag = arch.partition(".")
    tags = [t.partition(".")[2] for t in timm.list_pretrained(name)]
    if tag and tag not in tags and not is_source(tag):
        raise UserError(f"Unknown tag {tag!r} of {name}; it has {', '.join(tags)}.")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `create_model`."""
    named = {name: value for name in _OPTIONS if (value := getattr(args, name)) is not None}
    others = dict(args.model_kwargs)
    for name, value in others.items():
        if name in _WEIGHTS:
            raise UserError(f"--model-kwargs {name}=...: --source says which weights the model gets.")
        if name in named:
            raise UserError(f"--model-kwargs {name}=...: there is --{name.replace('_', '-')} already.")
        if name in _OPTIONS and isinstance(value, (int, float)):  # some models take two numbers, or None
            _OPTIONS[name].check(f"--model-kwargs {name}", value)
    return named | others


def trace_model(args: argparse.Namespace, dialect: Any) -> "tuple[nn.Module, Graph]":
    """Model and graph, on the meta device if the model's code allows."""
    from ..graph import trace

    return _on_meta(args, lambda model: (model, trace(model, args.img_size, dialect)))


def _on_meta(args: argparse.Namespace, use: "Callable[[nn.Module], T]") -> "T":
    """The result of `use` for a model on the meta device, or for one with real values if that fails."""
    import torch

    _check_architecture(args.arch)
    options = model_options(args)
    try:
        with torch.device("meta"):
            model, _ = _create(args, options)
        return use(model)
    except Exception:  # of any type: raised by a model's own code, which needs values
        _logger.debug("%s is built with real values.", args.arch, exc_info=True)
    return use(build(args)[0])


def read_ghn(text: str) -> tuple[Source, str, Any]:
    """The GHN of a source.

    Returns:
        The source, "ghn" resolved as far as possible without a network; the reason for that resolution, "" if the user
        named the GHN; and what knows its `dialect` and `num_classes`, which for a GHN with a name needs no checkpoint.
    """
    from ..checkpoints.load import expected_default, load_ghn

    source, why = parse_source(text), ""
    if source.initialisation:
        raise UserError(f"{source} is an initialisation without a GHN and needs no graph. Name a GHN, e.g. ghn2.")
    if source.name == DEFAULT:
        name, why = expected_default()
        source = replace(source, name=name)
    return source, why, source.known or load_ghn(source)


def build_initialised(args: argparse.Namespace, source: Source) -> "tuple[nn.Module, dict[str, Any], InitReport, int]":
    """The architecture, initialised; the options that it took; the report; the seed."""
    import torch

    from ..initialize import init_model

    seed = source.seed_or(args.seed)
    device = read_device(args.device)
    torch.manual_seed(seed)  # of timm's own initialisation, for parameters that are not predicted
    model, options = build(args)
    with mistakes(ValueError):  # keys of the source that do not fit the model
        report = init_model(model, source, input_size=args.img_size, seed=seed, device=device)
    return model, options, report, seed


def model_key(args: argparse.Namespace, source: Source) -> tuple[str, str]:
    """As `finished_key`, for an architecture on the meta device if its code allows."""
    from ..initialize import finished_key

    return _on_meta(args, lambda model: finished_key(model, source, args.img_size, args.seed))


def read_device(name: str | None) -> "torch.device | None":
    """A device by name; None stays None.

    Raises:
        InputError: this machine does not have it, or it cannot compute ("meta").
    """
    import torch

    if name is None:
        return None
    check_device(name)
    return torch.device(name)


def device_of_rank() -> str | None:
    """Under torchrun, the GPU of this process; None for the default device."""
    import torch

    count, rank = torch.cuda.device_count(), os.environ.get("LOCAL_RANK")
    return f"cuda:{int(rank) % count}" if rank and count else None
