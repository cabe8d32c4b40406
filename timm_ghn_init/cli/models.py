"""From options to models, graphs, devices and sources."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from ..sources import DEFAULT, Source, parse_source
from ..text import logger
from .messages import UserError, did_you_mean, mistakes

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..graph import Graph
    from ..report import InitReport

_logger = logger(__name__)


def create_architecture(args: argparse.Namespace) -> "nn.Module":
    """The architecture with timm's own initialisation."""
    return build(args)[0]


def build(args: argparse.Namespace) -> "tuple[nn.Module, dict[str, Any]]":
    """The architecture with timm's own initialisation, and the options that it took."""
    import timm

    _check_architecture(args.arch)
    options = model_options(args)
    try:
        return timm.create_model(args.arch, pretrained=False, **options), options
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        if "'img_size'" not in str(error) or args.img_size is None:
            raise UserError(f"{args.arch}: {error}") from error
    options.pop("img_size")  # built for any size
    return timm.create_model(args.arch, pretrained=False, **options), options


def with_weights(args: argparse.Namespace, pretrained: bool) -> "nn.Module":
    """The architecture, with timm's weights if they are asked for."""
    import timm

    model, options = build(args)
    return timm.create_model(args.arch, pretrained=True, **options) if pretrained else model


def _check_architecture(arch: str) -> None:
    import timm

    from ..sources import is_source

    if not timm.is_model(arch):
        close = did_you_mean(arch.partition(".")[0], timm.list_models())
        raise UserError(f"Unknown architecture {arch!r}.{close} timm.list_models() lists all.")
    name, _, tag = arch.partition(".")
    tags = [t.partition(".")[2] for t in timm.list_pretrained(name)]
    if tag and tag not in tags and not is_source(tag):
        raise UserError(f"Unknown tag {tag!r} of {name}; it has {', '.join(tags)}.")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `create_model`: those that have an option of their own, then the others."""
    named = {name: getattr(args, name) for name in ("num_classes", "in_chans", "img_size")}
    return {name: value for name, value in named.items() if value is not None} | args.model_kwargs


def trace_model(args: argparse.Namespace) -> "tuple[nn.Module, Graph]":
    """Model and graph, built without memory where that works."""
    import torch

    from ..graph import trace

    dialect = _dialect(read_source(args.source))
    try:
        with torch.device("meta"):
            model = create_architecture(args)
        return model, trace(model, args.img_size, dialect)
    except UserError:
        raise
    except Exception:  # whatever a model's own code raises where there are no values
        _logger.debug("%s is built with real values.", args.arch, exc_info=True)
    model = create_architecture(args)
    return model, trace(model, args.img_size, dialect)


def _dialect(source: Source) -> Any:
    """Of the graphs that a source's GHN reads; its checkpoint is not needed if it has a name."""
    from ..checkpoints.load import load_ghn

    if source.baseline:
        raise UserError(f"{source} is an initialisation without a GHN and needs no graph. Name a GHN, e.g. ghn2.")
    if source.name == DEFAULT:
        source = read_source(os.environ.get("TIMM_GHN_DEFAULT") or "ghn2")
    return source.known.dialect if source.known else load_ghn(source).dialect


def build_initialised(args: argparse.Namespace, source: Source) -> "tuple[nn.Module, dict[str, Any], InitReport, int]":
    """The architecture, initialised; the options that it took; the report; the seed of all that was random."""
    import torch

    from ..initialize import init_model

    seed = source.seed_or(args.seed)
    device = read_device(args.device)
    torch.manual_seed(seed)  # of timm's own initialisation, which is kept by what is not predicted
    model, options = build(args)
    with mistakes(ValueError):  # options of the source that do not fit the model
        report = init_model(model, source, input_size=args.img_size, seed=seed, device=device)
    return model, options, report, seed


def model_key(args: argparse.Namespace, source: Source) -> tuple[str, str]:
    """As `finished_key`, of an architecture that is built without memory where that works."""
    import torch

    from ..initialize import finished_key

    try:
        with torch.device("meta"):
            model = create_architecture(args)
        return finished_key(model, source, args.img_size, args.seed)
    except UserError:
        raise
    except Exception:  # whatever a model's own code raises where there are no values
        _logger.debug("%s is built with real values.", args.arch, exc_info=True)
    with mistakes(ValueError):
        return finished_key(create_architecture(args), source, args.img_size, args.seed)


def read_device(name: str | None) -> "torch.device | None":
    """A device that this machine has."""
    import torch

    if name is None:
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # unknown, or not in this machine or build
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from error


def read_source(text: str) -> Source:
    """`parse_source`, where an error is the user's."""
    with mistakes(ValueError):
        return parse_source(text)
