"""`analyze`: what an initialisation looks like, before any training."""

import argparse
from typing import TYPE_CHECKING, Any

from ..sources import DEFAULT, parse_source
from ..utils.checks import whole
from ..utils.text import logger
from .arguments import ARCHITECTURE, INITS, RANDOM, command, image_options, one_source, opt, sources
from .files import picture_path, present
from .messages import UserError, one_line, table
from .models import with_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..lab.analysis.embeddings import Architecture
    from ..lab.analysis.inits import Create

_logger = logger(__name__)


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,20,37") from None


_OUTPUT = opt(
    "-o --output", "a picture, with its numbers in FILE.json; or FILE.json alone (required without --json)",
    metavar="FILE.svg|png|json",
)  # fmt: skip
_SOURCES = sources(INITS, "sources to compare; also pretrained, timm")


@command(
    "analyze correlations resnet50 --source rand ghn -o c.svg",
    *ARCHITECTURE,
    _SOURCES,
    opt("--layers", "layers whose distribution is shown, from 1 (default: four)", _numbers, (), metavar="1,20,..."),
    RANDOM,
    _OUTPUT,
    name="analyze correlations",
)
def correlations(args: argparse.Namespace) -> int:
    """Measure how strongly the channels of each layer correlate (the paper's Figure 2)."""
    from ..lab.analysis import compare, correlation_figure

    output = picture_path(args)
    create, sources, status = _available(args)
    data = compare(create, sources, name=args.arch, seed=args.seed, layers=args.layers, input_size=args.img_size)
    present(args, output, data, correlation_figure, _correlations_as_text)
    return status


def _correlations_as_text(data: dict[str, Any]) -> str:
    rows = []
    for row in data["inits"]:
        known = [std for std in row["std"] if std is not None]
        selected = [row["std"][layer - 1] for layer in data["selected"]]
        rows.append((row["init"], *map(_rounded, [*selected, sum(known) / len(known) if known else None])))
    header = ("initialisation", *(f"layer {layer}" for layer in data["selected"]), "mean of all")
    return f"Standard deviation of the correlations between channels\n\n{table(header, rows)}"


def _rounded(value: float | None) -> str | None:
    return None if value is None else f"{value:.3f}"


@command(
    "analyze signal resnet50 --source rand orth ghn-orth -o signal.svg",
    *ARCHITECTURE,
    _SOURCES,
    *image_options("noise"),
    opt("-b --batch-size", "number of images", whole(2), 8, metavar="N"),
    RANDOM,
    _OUTPUT,
    name="analyze signal",
)
def signal(args: argparse.Namespace) -> int:
    """Follow activations and gradients through an untrained network: where they vanish or explode."""
    from ..lab.analysis import signal_figure, signals

    output = picture_path(args)
    create, sources, status = _available(args)
    images, labels = _images(args, create(False))
    data = signals(create, sources, images, labels, name=args.arch, seed=args.seed) | {"data": args.data}
    header = ("initialisation", "std of logits", "between images", "")
    rows = [(r["init"], _rounded(r["logits"]), _rounded(r["between"]), r["verdict"]) for r in data["inits"]]
    present(args, output, data, signal_figure, lambda data: table(header, rows))
    return status


def _images(args: argparse.Namespace, model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """Images, normalised for the network, and their classes."""
    import torch

    from ..lab.images.datasets import some_images

    config: Any = model.pretrained_cfg  # every timm model has one
    channels, height, width = config["input_size"]
    channels = args.in_chans or channels
    if args.img_size:
        height = width = args.img_size
    if args.data == "noise":
        generator = torch.Generator().manual_seed(args.seed)
        return torch.randn(args.batch_size, channels, height, width, generator=generator), None
    if channels != 3 or height != width:
        raise UserError(f"--data {args.data}: {args.arch} takes {channels}x{height}x{width}; use --data noise.")
    some = some_images(args.data, args.batch_size, height, args.data_dir)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (some.images / 255 - mean) / std, some.labels


@command(
    "analyze embed resnet50 convnext_base --size 200 -o embed.svg",
    opt("arch", "timm architectures to highlight", nargs="+", metavar="ARCH"),
    one_source(DEFAULT, "the GHN that embeds, see `list`"),
    opt("--reference", "others: timm, timm:PATTERN,... or networks (of train-ghn)", str, "timm", metavar="SET"),
    opt("--size", "how many others", whole(2), 100, metavar="N"),
    opt("--values", "colour by a number from this table (default: by module)", metavar="FILE.csv"),
    opt("--column", "column of the table (default: the first with numbers)", metavar="NAME"),
    RANDOM,
    _OUTPUT,
    name="analyze embed",
)
def embed(args: argparse.Namespace) -> int:
    """Project graph embeddings of architectures on two principal components (the paper's Figure 5)."""
    from ..checkpoints.load import load_ghn, resolve_default
    from ..lab.analysis import embedding_figure, place, read_values

    output = picture_path(args)
    source = parse_source(args.source)
    if source.initialisation:
        raise UserError(f"{source} is an initialisation without a GHN and embeds nothing. Name a GHN, e.g. ghn2.")
    if args.column and not args.values:
        raise UserError("--column needs --values.")
    column, values = read_values(args.values, args.column) if args.values else (None, {})
    given, reference = _architectures(args)
    source = resolve_default(source)
    data = place(load_ghn(source), given, reference, values=values)
    data |= {"ghn": source.name, "reference": args.reference, "column": column}
    present(args, output, data, lambda data: embedding_figure(data, column), _embedded_as_text)
    return 0


def _embedded_as_text(data: dict[str, Any]) -> str:
    rows = [(p["name"], p["group"], p["nodes"], f"{p['x']:.3f}", f"{p['y']:.3f}") for p in data["points"] if p["given"]]
    header = ("architecture", "module", "nodes", "first component", "second")
    return f"{len(data['points']) - len(rows)} architectures to compare with\n\n{table(header, rows)}"


def _architectures(args: argparse.Namespace) -> "tuple[list[Architecture], list[Architecture]]":
    from ..lab.analysis.embeddings import sampled_reference, timm_architecture, timm_reference

    given = [timm_architecture(name) for name in dict.fromkeys(args.arch)]
    kind, _, patterns = args.reference.partition(":")
    if kind == "timm":
        return given, timm_reference(args.size, patterns.split(",") if patterns else ("*",), args.seed)
    if args.reference == "networks":
        return given, sampled_reference(args.size, args.seed)
    raise UserError(f"--reference {args.reference}: is not timm, timm:PATTERN,... or networks.")


# -- what the commands share -------------------------------------------------------------------------------------------


def _available(args: argparse.Namespace) -> "tuple[Create, list[str], int]":
    """A function that builds the network, the available sources, and the exit status: 1 if others are unavailable."""
    from ..lab.analysis import obtainable

    def create(pretrained: bool) -> "nn.Module":
        return with_weights(args, pretrained)

    found, missing = obtainable(create, args.source)
    if not found:
        raise UserError(next(iter(missing.values())))
    for init, reason in missing.items():
        _logger.warning("%s is left out: %s", init, one_line(reason))
    return create, found, 1 if missing else 0
