"""From options to models, graphs, devices and sources."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ..sources import DEFAULT, Source, parse_source
from ..utils.checks import shown, whole
from ..utils.text import did_you_mean, logger
from .messages import UserError, mistakes, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..graph import Graph
    from ..report import InitReport

T = TypeVar("T")
_logger = logger(__name__)

_OPTIONS = {"num_classes": whole(0), "in_chans": whole(1), "img_size": whole(1)}  # have an option of their own
_WEIGHTS = (  # of `create_model`, what says where weights come from
    *("model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"),
    *("checkpoint_path", "cache_dir"),
)
_LARGE = 10_000  # a size up to which no model is too large for a machine
_MOST_WEIGHTS = 10_000  # the largest models of timm have 3000, buffers included


def create_architecture(args: argparse.Namespace) -> "nn.Module":
    """The architecture with timm's own initialisation."""
    return build(args)[0]


def build(args: argparse.Namespace) -> "tuple[nn.Module, dict[str, Any]]":
    """The architecture with timm's own initialisation, and the options that it took."""
    _check_architecture(args.arch)
    options = model_options(args)
    given = ", ".join(f"{name}={shown(value)}" for name, value in options.items())
    try:
        _check_memory(args, options)
        return _create(args, options)
    except Exception as error:  # whatever a model's own code makes of the options
        if not options or isinstance(error, UserError):
            raise
        _logger.debug("%s:", args.arch, exc_info=True)
        raise UserError(f"{args.arch} cannot be built with {given}: {one_line(error)[:300]}") from error


def _create(args: argparse.Namespace, options: dict[str, Any]) -> "tuple[nn.Module, dict[str, Any]]":
    import timm

    try:
        return timm.create_model(args.arch, pretrained=False, **options), options
    except TypeError as error:
        if "unexpected keyword argument 'img_size'" not in str(error) or args.img_size is None:
            raise
    options = {name: value for name, value in options.items() if name != "img_size"}  # built for any size
    return timm.create_model(args.arch, pretrained=False, **options), options


def with_weights(args: argparse.Namespace, pretrained: bool) -> "nn.Module":
    """The architecture, with timm's weights if they are asked for."""
    import timm

    model, options = build(args)
    return timm.create_model(args.arch, pretrained=True, **options) if pretrained else model


def _check_memory(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Raise for a model that this machine cannot hold: the system would kill the process half-way."""
    import torch

    if any(isinstance(value, int) and value > _LARGE for value in _flat(options.values())):
        with torch.device("meta"), _counted(_memory()):
            _create(args, options)


def _flat(values: Iterable[Any]) -> Iterator[Any]:
    """Values, and those in lists and tuples."""
    for value in values:
        yield from _flat(value) if isinstance(value, (list, tuple)) else (value,)


@contextmanager
def _counted(most: int | None) -> "Iterator[None]":
    """Raise a MemoryError when a model that is being built gets more bytes than there are, or weights without end."""
    from torch.nn.modules import module

    seen: dict[str, int] = {"bytes": 0, "weights": 0}

    def count(owner: Any, name: str, tensor: Any) -> None:
        if tensor is not None:
            seen["bytes"] += tensor.nbytes
            seen["weights"] += 1
        if most is not None and seen["bytes"] > most:
            raise MemoryError(
                f"{seen['bytes'] / 1e9:,.0f} GB would be needed, and there are {most / 1e9:,.0f} GB of memory"
            )
        if seen["weights"] > _MOST_WEIGHTS:
            raise MemoryError(f"it would have more than {_MOST_WEIGHTS:,} weights")

    registered = (module.register_module_parameter_registration_hook, module.register_module_buffer_registration_hook)
    handles = [register(count) for register in registered]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _memory() -> int | None:
    """Bytes that this machine can still give, None if it does not say."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * sum(int(lines[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError):
        return None


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
    named = {name: getattr(args, name) for name in _OPTIONS}
    named = {name: value for name, value in named.items() if value is not None}
    for name, value in args.model_kwargs.items():
        if name in _WEIGHTS:
            raise UserError(f"--model-kwargs {name}=...: which weights the model gets is what --source says.")
        if name in named:
            raise UserError(f"--model-kwargs {name}=...: there is --{name.replace('_', '-')} already.")
        if name in _OPTIONS and isinstance(value, (int, float)):  # some models take two numbers, or none
            with mistakes(ValueError):
                _OPTIONS[name].check(f"--model-kwargs {name}", value)
    return named | args.model_kwargs


def trace_model(args: argparse.Namespace, dialect: Any) -> "tuple[nn.Module, Graph]":
    """Model and graph, built without memory where that works."""
    from ..graph import trace

    return _without_memory(args, lambda model: (model, trace(model, args.img_size, dialect)))


def _without_memory(args: argparse.Namespace, use: "Callable[[nn.Module], T]") -> "T":
    """What is made of an architecture, on the meta device where that works."""
    import torch

    _check_architecture(args.arch)
    options = model_options(args)
    try:
        with torch.device("meta"):
            model, _ = _create(args, options)
        return use(model)
    except Exception:  # whatever a model's own code raises where there are no values
        _logger.debug("%s is built with real values.", args.arch, exc_info=True)
    return use(create_architecture(args))


class Reads(NamedTuple):
    """What there is to know of a GHN before it reads a graph.

    Attributes:
        source: "ghn" resolved, as far as that is possible without a network.
        why: it stands for that; "" where the user named it.
        dialect: of the graphs that it reads.
        num_classes: of the classifiers that it predicts.
    """

    source: Source
    why: str
    dialect: Any
    num_classes: int


def read_ghn(text: str) -> Reads:
    """What a source's GHN reads and predicts; its checkpoint is not needed if it has a name."""
    from ..checkpoints.load import expected_default, load_ghn

    source, why = parse_source(text), ""
    if source.baseline:
        raise UserError(f"{source} is an initialisation without a GHN and needs no graph. Name a GHN, e.g. ghn2.")
    if source.name == DEFAULT:
        name, why = expected_default()
        source = replace(source, name=name)
    about = source.known or load_ghn(source)
    return Reads(source, why, about.dialect, about.num_classes)


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
    from ..initialize import finished_key

    with mistakes(ValueError):
        return _without_memory(args, lambda model: finished_key(model, source, args.img_size, args.seed))


def read_device(name: str | None) -> "torch.device | None":
    """A device that this machine has, and that can compute."""
    import torch

    if name is None:
        return None
    try:
        one = torch.ones(1, device=name)
        one.item()  # there are no values on meta
        return one.device
    except Exception as error:  # unknown, or not in this machine or build; the types have nothing in common
        cause = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"--device {name}: {cause}") from error


def read_predicting(text: str) -> Source:
    """`parse_source` of what has a GHN, and so a prediction that others can take."""
    source = parse_source(text)
    if source.baseline:
        raise UserError(
            f"{source} is an initialisation without a GHN: there is no prediction to share. Name a GHN, e.g. ghn2."
        )
    return source
