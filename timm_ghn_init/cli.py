"""The command line, `timm-ghn-init COMMAND`; `timm-ghn-init --help` lists the commands.

Exit status: 0; 1 where `verify` finds a difference; 2 with one line on stderr for a mistake of the user. Results go to
stdout, all else to stderr. What is slow to import is imported by the command that needs it.
"""

import argparse
import ast
import copy
import difflib
import io
import json
import logging
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from . import __version__
from .sources import DEFAULT, KNOWN, Source, list_sources, parse_source

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .ghn import GHN
    from .graph import Graph
    from .report import InitReport

_logger = logging.getLogger(__name__)

PROG = "timm-ghn-init"
METADATA_KEY = "timm_ghn_init"
TOLERANCE = 1e-4  # of `verify`, relative to the largest value of a tensor
WITHOUT_POOLING = ("mnasnet", "shufflenet")  # they pool with a mean that ppuda does not see
TORCHVISION_OPTIONS = {
    name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")
}  # ppuda removes auxiliary heads


class UserError(Exception):
    """A mistake of the user; the message says what to do instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments. Default: those of the process.

    Returns:
        The exit status.

    Raises:
        SystemExit: by argparse, for `--help`, `--version` and wrong options.
    """
    args = _parser().parse_args(argv)
    with _logging(args.verbose - args.quiet):
        try:
            status = args.run(args)
            sys.stdout.flush()
            return status
        except BrokenPipeError:  # the reader, `head` for instance, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if not _is_mistake(error):
                raise
            _logger.debug("Traceback:", exc_info=True)
            print(f"{PROG}: error: {_one_line(error)}", file=sys.stderr)
            return 2


def _is_mistake(error: Exception) -> bool:
    from .formats import CheckpointError
    from .graph import TraceError

    return isinstance(error, (UserError, CheckpointError, TraceError))


def _one_line(text: object) -> str:
    """Names come from models and files: no line breaks, and nothing that steers a terminal."""
    return "".join(c if c.isprintable() else "?" for c in " ".join(str(text).split()))


# -- commands ----------------------------------------------------------------------------------------------------------


def predict(args: argparse.Namespace) -> int:
    """Write the weights that a source predicts for an architecture, as a file that timm loads."""
    import torch

    from .initialize import init_model

    output = _output(args.output, (".safetensors",))
    source = _source(args.source)
    device = _device(args.device)
    seed = next(s for s in (args.seed, source.seed, 0) if s is not None)
    torch.manual_seed(seed)  # of timm's own initialisation, which is kept by what is not predicted
    model = _create(args)
    with _mistakes(ValueError):  # options of the source that do not fit the model
        report = init_model(model, source, input_size=args.img_size, seed=seed, device=device)
    with _writing(output) as temporary:
        _save(model, temporary, _provenance(args, model, report, seed))
    print(output)
    return 0


def verify(args: argparse.Namespace) -> int:
    """Compare a prediction with that of ppuda, tensor by tensor."""
    reference = _reference()
    import torchvision

    from .checkpoints import load_ghn
    from .initialize import init_model

    names = torchvision.models.list_models(module=torchvision.models)
    if args.arch not in names:
        raise UserError(f"Unknown torchvision model {args.arch!r}.{_did_you_mean(args.arch, names)}")
    source = Source(_source(f"file:{args.ghn}" if Path(args.ghn).is_file() else args.ghn).name)
    ghn = load_ghn(source, "cpu")
    if ghn.dialect != "ghn2":
        raise UserError(f"{args.ghn} is a GHN-3, and ppuda knows only GHN-1 and GHN-2.")
    options = TORCHVISION_OPTIONS.get(args.arch, {})
    ours = torchvision.models.get_model(args.arch, weights=None, num_classes=ghn.num_classes, **options).eval()
    _forget(ours)
    theirs = copy.deepcopy(ours)
    init_model(ours, source, device="cpu")
    _reference_predict(reference, ghn, theirs)
    if args.arch.startswith(WITHOUT_POOLING):
        _logger.warning("ppuda's graph of %s lacks the global average pooling: differences are expected.", args.arch)
    return _compare(_known(ours), _known(theirs))


def inspect(args: argparse.Namespace) -> int:
    """Print the graph's statistics and which parameters are predicted, without a checkpoint."""
    statistics = _statistics(args.arch, *_trace(args))
    print(json.dumps(statistics, indent=2) if args.json else _as_text(statistics))
    return 0


def graph(args: argparse.Namespace) -> int:
    """Draw the graph of an architecture, without a checkpoint."""
    from .draw import FORMATS, draw

    output = _output(args.output, tuple(FORMATS))
    _, traced = _trace(args)
    with _mistakes(OSError, ImportError):
        draw(traced, output, title=args.arch)
    print(output)
    return 0


def list_known(args: argparse.Namespace) -> int:
    """Print the sources."""
    from .checkpoints import is_cached

    names = dict.fromkeys(source.name for source in list_sources())
    rows = [(DEFAULT, "", "", "", "the default: TIMM_GHN_DEFAULT, else ghn2, else the GHN that ships")]
    for known in (KNOWN[name] for name in names if name in KNOWN):
        cached = "yes" if is_cached(known.name) else "no"
        rows.append((known.name, cached, known.license, f"arXiv:{known.arxiv}", known.description))
    rows.append(("file:PATH", "", "", "", "a .pt or .safetensors file"))
    print(_table(("source", "cached", "licence", "paper", "description"), rows))
    print("\nEach also with post-processing (ghn2-orth), and with options (ghn2-orth?layer=94&seed=1).")
    return 0


def fetch(args: argparse.Namespace) -> int:
    """Download a GHN, if it is not here yet, and print its path."""
    from . import checkpoints

    print(checkpoints.fetch(_source(args.name)))
    return 0


# -- models ------------------------------------------------------------------------------------------------------------


def _create(args: argparse.Namespace) -> "nn.Module":
    """The architecture with timm's own initialisation."""
    import timm

    _check_architecture(args.arch)
    options = _model_options(args)
    try:
        return timm.create_model(args.arch, pretrained=False, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        if "'img_size'" not in str(error) or args.img_size is None:
            raise UserError(f"{args.arch}: {error}") from error
    options.pop("img_size")  # built for any size
    return timm.create_model(args.arch, pretrained=False, **options)


def _check_architecture(arch: str) -> None:
    import timm

    from .sources import is_source

    if not timm.is_model(arch):
        close = _did_you_mean(arch.partition(".")[0], timm.list_models())
        raise UserError(f"Unknown architecture {arch!r}.{close} timm.list_models() lists all.")
    name, _, tag = arch.partition(".")
    tags = [t.partition(".")[2] for t in timm.list_pretrained(name)]
    if tag and tag not in tags and not is_source(tag):
        raise UserError(f"Unknown tag {tag!r} of {name}; it has {', '.join(tags)}.")


def _model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments for `create_model`: those that have an option of their own, then the others."""
    named = {name: getattr(args, name) for name in ("num_classes", "in_chans", "img_size")}
    return {name: value for name, value in named.items() if value is not None} | args.model_kwargs


def _trace(args: argparse.Namespace) -> "tuple[nn.Module, Graph]":
    """Model and graph, built without memory where that works."""
    import torch

    from .graph import trace

    dialect = _dialect(_source(args.source))
    try:
        with torch.device("meta"):
            model = _create(args)
        return model, trace(model, args.img_size, dialect)
    except UserError:
        raise
    except Exception:  # whatever a model's own code raises where there are no values
        _logger.debug("%s is built with real values.", args.arch, exc_info=True)
    model = _create(args)
    return model, trace(model, args.img_size, dialect)


def _dialect(source: Source) -> Any:
    """Of the graphs that a source's GHN reads; its checkpoint is not needed if it has a name."""
    from .checkpoints import load_ghn

    if source.name == DEFAULT:
        source = _source(os.environ.get("TIMM_GHN_DEFAULT") or "ghn2")
    return source.known.dialect if source.known else load_ghn(source).dialect


def _device(name: str | None) -> "torch.device | None":
    import torch

    if name is None:
        return None
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # unknown, or not in this machine or build
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from error


def _source(text: str) -> Source:
    with _mistakes(ValueError):
        return parse_source(text)


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=3)
    return f" Did you mean {' or '.join(close)}?" if close else ""


@contextmanager
def _mistakes(*types: type[Exception]) -> Iterator[None]:
    """Errors that are the user's doing here."""
    try:
        yield
    except types as error:
        raise UserError(str(error)) from error


# -- predict: the file -------------------------------------------------------------------------------------------------


def _output(path: str, suffixes: tuple[str, ...]) -> Path:
    """A path that can be written, as far as can be seen before the work."""
    output = Path(path)
    if output.suffix.lower() not in suffixes:
        raise UserError(f"{output}: the output must end in {' or '.join(suffixes)}.")
    if not output.parent.is_dir():
        raise UserError(f"{output}: there is no folder {output.parent}.")
    if output.is_dir():
        raise UserError(f"{output}: is a folder.")
    if not os.access(output.parent, os.W_OK):
        raise UserError(f"{output}: the folder {output.parent} cannot be written to.")
    return output


@contextmanager
def _writing(output: Path) -> Iterator[Path]:
    """A file to write that becomes `output` when it is complete."""
    from safetensors import SafetensorError

    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, output)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{output} cannot be written: {error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _save(model: "nn.Module", path: Path, provenance: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    # One entry in the metadata: their order in the file is not defined, and the same command shall give the same bytes.
    save_file(_state_dict(model), path, {METADATA_KEY: json.dumps(provenance)})


def _state_dict(model: "nn.Module") -> "dict[str, Tensor]":
    """All entries, on CPU, none sharing memory: timm loads strictly, so tied tensors are there under each name."""
    tensors: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in model.state_dict().items():
        t = tensor.detach().cpu().contiguous()
        if t.untyped_storage().data_ptr() in storages or t.untyped_storage().nbytes() > t.nbytes:
            t = t.clone()
        storages.add(t.untyped_storage().data_ptr())
        tensors[name] = t
    return tensors


def _provenance(args: argparse.Namespace, model: "nn.Module", report: "InitReport", seed: int) -> dict[str, Any]:
    """How a file of weights came about; nothing that differs between two runs of one command."""
    import timm
    import torch

    from .checkpoints import fetch
    from .download import sha256

    source = parse_source(report.source)
    ghn = {"name": source.name, "sha256": sha256(fetch(source))}
    if source.known:
        ghn |= {"origin": source.known.origin, "license": source.known.license, "paper": f"arXiv:{source.known.arxiv}"}
    return {
        "source": report.source,
        "ghn": ghn,
        "architecture": args.arch,
        "num_classes": getattr(model, "num_classes", None),
        "options": _model_options(args),
        "seed": seed,
        "coverage": report.coverage,
        "predicted": report.predicted,
        "skipped": report.skipped,
        "layer": report.layer,
        "postprocessed": report.postprocessed,
        "device": report.device,
        "versions": {
            "timm_ghn_init": __version__,
            "timm": timm.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


# -- inspect: statistics -----------------------------------------------------------------------------------------------


def _statistics(arch: str, model: "nn.Module", graph: "Graph") -> dict[str, Any]:
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return {
        "architecture": arch,
        "input_size": list(graph.input_size),
        "nodes": len(graph.nodes),
        "edges": len(graph.edges),
        "virtual_edges": int((graph.distances() > 1).sum()),
        "primitives": dict(Counter(node.primitive for node in graph.nodes).most_common()),
        "tensors": len(sizes),
        "tensors_predicted": len(graph.targets),
        "values": sum(sizes.values()),
        "values_predicted": sum(sizes[name] for name in graph.targets),
        "parameters": [_parameter(name, p, graph) for name, p in model.named_parameters()],
    }


def _parameter(name: str, parameter: "Tensor", graph: "Graph") -> dict[str, Any]:
    """Whether a parameter is predicted, as what, and why not; the classifier only with as many classes as the GHN's."""
    target = graph.targets.get(name)
    return {
        "name": name,
        "shape": list(parameter.shape),
        "predicted": target is not None,
        "role": target.role if target else None,
        "classifier": bool(target and target.classifier),
        "reason": graph.skipped.get(name),
    }


def _as_text(s: dict[str, Any]) -> str:
    rows = []
    for p in s["parameters"]:
        role = f"{p['role']} (classifier)" if p["classifier"] else p["role"]
        rows.append((p["name"], "x".join(map(str, p["shape"])) or "scalar", role or "-", p["reason"] or ""))
    share = s["values_predicted"] / max(1, s["values"])
    return "\n".join(
        (
            f"{s['architecture']}, input {'x'.join(map(str, s['input_size']))}",
            f"{s['nodes']} nodes, {s['edges']} edges, {s['virtual_edges']} virtual edges (paths of 2 to 50 edges)",
            "",
            _table(("primitive", "nodes"), s["primitives"].items()),
            "",
            _table(("parameter", "shape", "predicted as", "why not"), rows),
            "",
            f"{s['tensors_predicted']} of {s['tensors']} parameters are predicted, {share:.2%} of {s['values']:,} "
            "values; the classifier only by a GHN for the same number of classes.",
        )
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, *(tuple(map(_one_line, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


# -- verify: the reference ---------------------------------------------------------------------------------------------


def _reference() -> Any:
    """ppuda's GHN class."""
    try:
        from ppuda.ghn.nn import GHN
    except ImportError as error:
        raise UserError(
            f"verify compares with the reference, ppuda, which cannot be imported ({error}). "
            "It is on no package index: pip install -r requirements-reference.txt, from this project's repository."
        ) from error
    return GHN


def _reference_predict(reference: Any, ghn: "GHN", model: "nn.Module") -> None:
    """Let ppuda predict, in place, with the weights of our GHN."""
    peer = reference(**ghn.config).eval()
    peer.load_state_dict(ghn.state_dict())
    with redirect_stdout(io.StringIO()) as said:
        peer(model, bn_train=False)
    _logger.debug("%s", said.getvalue())


def _forget(model: "nn.Module") -> None:
    """Fill the parameters with NaN, so that those without a prediction can be told."""
    for p in model.parameters():
        p.data.fill_(float("nan"))


def _known(model: "nn.Module") -> "dict[str, Tensor]":
    return {name: p.detach() for name, p in model.named_parameters() if not p.isnan().all()}


def _compare(ours: "dict[str, Tensor]", theirs: "dict[str, Tensor]") -> int:
    """Print the differences; 1 if there are any worth the name."""
    rows, wrong = [], []
    for name in dict.fromkeys((*ours, *theirs)):
        if name not in ours or name not in theirs:
            rows.append((name, "", "", f"predicted by {'us' if name in ours else 'ppuda'} only"))
            wrong.append(name)
            continue
        absolute = (ours[name] - theirs[name]).abs().max().item()
        relative = absolute / max(theirs[name].abs().max().item(), 1e-30)
        shape = "x".join(map(str, ours[name].shape))
        rows.append((name, shape, f"{absolute:.2e}", f"{relative:.2e}"))
        if not relative <= TOLERANCE:  # NaN included
            wrong.append(name)
    print(_table(("parameter", "shape", "largest difference", "relative to the largest value"), rows))
    print(f"\n{len(rows) - len(wrong)} of {len(rows)} parameters agree to {TOLERANCE:g}.")
    return 1 if wrong else 0


# -- arguments ---------------------------------------------------------------------------------------------------------


class _ArgumentParser(argparse.ArgumentParser):
    """One line for a mistake, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROG}: error: {_one_line(message)} (see {self.prog} --help)\n")


class _KeyValue(argparse.Action):
    """key=value ..., values as Python literals where they are some; timm's scripts read `--model-kwargs` so."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        pairs = dict(getattr(namespace, self.dest))
        for text in values:
            key, equals, value = text.partition("=")
            if not equals or not key.isidentifier():
                parser.error(f"argument {option}: {text!r} is not key=value")
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


def _whole(least: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return number

    read.__name__ = "whole number"  # argparse: "invalid whole number value"
    return read


def _parser() -> argparse.ArgumentParser:
    parser = _ArgumentParser(prog=PROG, description="Initialise timm architectures with predicted parameters.")
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=run.__doc__, description=run.__doc__)
        sub.set_defaults(run=run)
        sub.add_argument("-v", "--verbose", action="count", default=0, help="more messages")
        sub.add_argument("-q", "--quiet", action="count", default=0, help="fewer messages")
        return sub

    sub = command("predict", predict)
    _add_architecture(sub)
    sub.add_argument("--source", default="ghn-orth", help="which GHN, see list (default: %(default)s)")
    sub.add_argument("--seed", type=_whole(0), help="of all that is random (default: the source's own, else 0)")
    sub.add_argument("--device", help="where to predict (default: CUDA if there is one, else CPU)")
    sub.add_argument(
        "-o", "--output", required=True, metavar="FILE.safetensors", help="for timm's --initial-checkpoint"
    )

    sub = command("verify", verify)
    sub.add_argument("arch", metavar="ARCH", help="a torchvision model")
    sub.add_argument("--ghn", default="ghn2", metavar="FILE", help="a GHN's file or name (default: %(default)s)")

    sub = command("inspect", inspect)
    _add_architecture(sub)
    sub.add_argument("--source", default=DEFAULT, help="whose graph: GHN-3's differs (default: %(default)s)")
    sub.add_argument("--json", action="store_true", help="for programs")

    sub = command("graph", graph)
    _add_architecture(sub)
    sub.add_argument("--source", default=DEFAULT, help="whose graph: GHN-3's differs (default: %(default)s)")
    sub.add_argument("-o", "--output", required=True, metavar="FILE.svg|png|dot")

    command("list", list_known)
    sub = command("fetch", fetch)
    sub.add_argument("name", metavar="NAME", help="see list")
    return parser


def _add_architecture(parser: argparse.ArgumentParser) -> None:
    """Options in the words of timm's scripts."""
    parser.add_argument("arch", metavar="ARCH", help="an architecture of timm")
    parser.add_argument("--num-classes", type=_whole(0), metavar="N")
    parser.add_argument("--in-chans", type=_whole(1), metavar="C")
    parser.add_argument("--img-size", type=_whole(1), metavar="H", help="of models that are built for one size")
    parser.add_argument("--model-kwargs", nargs="*", default={}, action=_KeyValue, metavar="KEY=VALUE")


class _Formatter(logging.Formatter):
    """As timm's: information as it is, all else with its level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


@contextmanager
def _logging(verbosity: int) -> Iterator[None]:
    """Our messages on stderr, and timm's with -v."""
    levels = (logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    saved = []
    for name, offset in (("timm_ghn_init", 2), ("timm", 1)):
        logger = logging.getLogger(name)
        saved.append((logger, logger.level))
        logger.setLevel(levels[min(max(verbosity + offset, 0), 3)])
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger, level in saved:
            logger.removeHandler(handler)
            logger.setLevel(level)
