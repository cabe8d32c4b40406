"""`analyze`: what an initialisation looks like, before any training."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sources import DEFAULT, parse_source
from ..utils.text import logger
from ..version import __version__
from .arguments import Command, add_architecture, add_data, add_source, add_sources, nested, whole
from .files import output_path, writing
from .finetune import INITS
from .messages import UserError, mistakes, one_line, table
from .models import with_weights
from .results import plain, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor, nn

    from ..lab.analysis.embeddings import Architecture
    from ..lab.analysis.inits import Create

_logger = logger(__name__)

_OUTPUT = "a picture, and its numbers beside it as FILE.json; or FILE.json alone (optional with --json)"


def add(command: Command) -> None:
    sub = nested(command("analyze", analyze))
    _add_correlations(sub("correlations", correlations))
    _add_signal(sub("signal", signal))
    _add_embed(sub("embed", embed))


def analyze(args: argparse.Namespace) -> int:
    """Show how alike channels are, what becomes of signals, or where a GHN places architectures, without training."""
    raise AssertionError("its commands run instead")


def _add_sources(sub: argparse.ArgumentParser) -> None:
    add_architecture(sub)
    add_sources(sub, INITS, f"which to compare; also pretrained, timm (default: {' '.join(INITS)})", "--sources")


def _at_hand(args: argparse.Namespace) -> "tuple[Create, list[str], int]":
    """What makes the network, the sources that can be had, and the exit status: 1 where others cannot."""
    from ..lab.analysis import obtainable

    def create(pretrained: bool) -> "nn.Module":
        return with_weights(args, pretrained)

    with mistakes(ValueError):
        found, missing = obtainable(create, args.source)
    if not found:
        raise UserError(next(iter(missing.values())))
    for init, reason in missing.items():
        _logger.warning("%s is left out: %s", init, one_line(reason))
    return create, found, 1 if missing else 0


def _add_correlations(sub: argparse.ArgumentParser) -> None:
    _add_sources(sub)
    sub.add_argument("--layers", default="", metavar="1,20,...", help="whose distribution is shown (default: four)")
    sub.add_argument("--seed", type=whole(0), default=0, help="of what is random (default: %(default)s)")
    sub.add_argument("-o", "--output", metavar="FILE.svg|png|json", help=_OUTPUT)


def correlations(args: argparse.Namespace) -> int:
    """Compare how much the channels of each layer correlate under several initialisations (the paper's Figure 2)."""
    from ..lab.analysis import compare, correlation_figure

    output, layers = picture_path(args), _numbers(args.layers)
    create, sources, status = _at_hand(args)
    with mistakes(ValueError):
        data = compare(create, sources, name=args.arch, seed=args.seed, layers=layers, input_size=args.img_size)
    present(args, output, data, lambda: correlation_figure(data), lambda: _correlations_as_text(data))
    return status


def _correlations_as_text(data: dict[str, Any]) -> str:
    selected = [data["layers"][i - 1] for i in data["selected"]]
    rows = [
        (row["init"], *(_cell(row["std"][info["layer"] - 1]) for info in selected), _cell(_mean(row["std"])))
        for row in data["inits"]
    ]
    header = ("initialisation", *(f"layer {i['layer']}" for i in selected), "mean of all")
    return f"Standard deviation of the correlations between channels\n\n{table(header, rows)}"


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")] if text else []
    except ValueError:
        raise UserError(f"--layers {text}: is not a list of whole numbers such as 1,20,37.") from None


def _add_signal(sub: argparse.ArgumentParser) -> None:
    _add_sources(sub)
    add_data(sub, "noise")
    sub.add_argument("-b", "--batch-size", type=whole(2), default=8, metavar="N", help="default: %(default)s")
    sub.add_argument("--seed", type=whole(0), default=0, help="of what is random (default: %(default)s)")
    sub.add_argument("-o", "--output", metavar="FILE.svg|png|json", help=_OUTPUT)


def signal(args: argparse.Namespace) -> int:
    """Follow signals through an untrained network, forwards and backwards: what vanishes, explodes, dies, and where."""
    from ..lab.analysis import signal_figure, signals

    output = picture_path(args)
    create, sources, status = _at_hand(args)
    images, labels = _images(args, create(False))
    with mistakes(ValueError):
        data = signals(create, sources, images, labels, name=args.arch, seed=args.seed)
    data["data"] = args.data
    rows = [(r["init"], _cell(r["logits"]), _cell(r["between"]), r["verdict"]) for r in data["inits"]]
    present(args, output, data, lambda: signal_figure(data), lambda: table(_SIGNAL_COLUMNS, rows))
    return status


_SIGNAL_COLUMNS = ("initialisation", "spread of logits", "between images", "")


def _images(args: argparse.Namespace, model: "nn.Module") -> "tuple[Tensor, Tensor | None]":
    """Images as the network wants them, and their classes."""
    import torch

    from ..lab.images import DatasetError
    from ..lab.images.datasets import some_images

    config: Any = model.pretrained_cfg  # of every model of timm
    channels, height, width = config["input_size"]
    channels = args.in_chans or channels
    if args.img_size:
        height = width = args.img_size
    if args.data == "noise":
        generator = torch.Generator().manual_seed(args.seed)
        return torch.randn(args.batch_size, channels, height, width, generator=generator), None
    if channels != 3 or height != width:
        raise UserError(f"--data {args.data}: {args.arch} takes {channels}x{height}x{width}; only noise can be had so.")
    with mistakes(DatasetError):
        some = some_images(args.data, args.batch_size, height, args.data_dir)
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (some.images / 255 - mean) / std, some.labels


def _add_embed(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("arch", nargs="+", metavar="ARCH", help="architectures of timm to point out")
    add_source(sub, DEFAULT)
    sub.add_argument(
        "--reference",
        default="timm",
        metavar="SET",
        help="what to place them among: timm, timm:PATTERN,PATTERN... or networks, those that train-ghn holds out "
        "(default: %(default)s)",
    )
    sub.add_argument("--size", type=whole(2), default=100, metavar="N", help="of the set (default: %(default)s)")
    sub.add_argument("--seed", type=whole(0), default=0, help="of its choice (default: %(default)s)")
    sub.add_argument("--values", metavar="FILE.csv", help="colour by a number, as in timm's tables, not by module")
    sub.add_argument("--column", metavar="NAME", help="of the CSV (default: its first with numbers)")
    sub.add_argument("-o", "--output", metavar="FILE.svg|png|json", help=_OUTPUT)


def embed(args: argparse.Namespace) -> int:
    """Project graph embeddings on two principal components, architectures among others (the paper's Figure 5)."""
    from ..checkpoints.load import load_ghn, resolve_default
    from ..lab.analysis import embedding_figure, place, read_values

    output = picture_path(args)
    source = parse_source(args.source)
    if source.baseline:
        raise UserError(f"{source} is an initialisation without a GHN and embeds nothing. Name a GHN, e.g. ghn2.")
    if args.column and not args.values:
        raise UserError("--column needs --values.")
    with mistakes(ValueError, OSError):
        column, values = read_values(args.values, args.column) if args.values else (None, {})
        given, reference = _architectures(args)
    source = resolve_default(source)
    with mistakes(ValueError):
        data = place(load_ghn(source), given, reference, values=values)
    data |= {"ghn": source.name, "reference": args.reference, "column": column}
    present(args, output, data, lambda: embedding_figure(data, column), lambda: _embedded_as_text(data))
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


def picture_path(args: argparse.Namespace) -> Path | None:
    """Where to write; what makes pictures must be there before the work. None: nowhere, with --json alone."""
    from ..lab.analysis import style

    if args.output is None:
        if args.json:
            return None
        raise UserError("-o FILE.svg (or .png, .json) is missing: where to write the picture; or say --json.")
    output = output_path(args.output, (".svg", ".png", ".json"))
    if output.suffix.lower() != ".json":
        with mistakes(ImportError), style():
            pass
    return output


def present(
    args: argparse.Namespace,
    output: Path | None,
    data: dict[str, Any],
    figure: "Callable[[], Figure]",
    text: Callable[[], str],
) -> None:
    """Write numbers and a picture of them, and show what was written where."""
    import timm
    import torch

    data |= {"versions": {"timm_ghn_init": __version__, "timm": timm.__version__, "torch": torch.__version__}}
    files = [] if output is None else _written(output, data, figure)
    show(args, {**data, "files": files}, lambda: "\n".join((*map(str, files), "", text())))


def _written(output: Path, data: dict[str, Any], figure: "Callable[[], Figure]") -> list[Path]:
    from ..lab.analysis import rendered, style

    numbers = output.with_suffix(".json")
    with writing(numbers) as temporary:
        temporary.write_text(json.dumps(plain(data), allow_nan=False) + "\n", encoding="utf-8")
    if output == numbers:
        return [numbers]
    with style():
        picture = rendered(figure(), output.suffix.lower())
    with writing(output) as temporary:
        temporary.write_bytes(picture)
    return [numbers, output]
