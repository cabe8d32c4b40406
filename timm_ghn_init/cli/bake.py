"""`bake`: the weights of many architectures, into folders or to the Hugging Face Hub."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from ..sources import Source
from ..utils.checks import NAMESPACE
from ..utils.progress import over
from ..utils.text import did_you_mean, logger
from .arguments import AGAIN, MODEL_OPTIONS, PREDICTION, command, either, opt, read_source
from .files import writing
from .messages import UserError, one_line, table
from .models import build_initialised, device_of_rank, model_key
from .predict import need_hub
from .results import show

_logger = logger(__name__)

FAILED = "failed"


def _shard(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (slash and part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N")
    return int(part) - 1, int(parts)


@command(
    "bake --models 'convnext*,resnet50' --source ghn2-orth --out baked",
    opt("--models", "timm architectures; * and ? match", required=True, metavar="'A*,B'"),
    *MODEL_OPTIONS,
    *PREDICTION,
    either(
        opt("--out", "write a folder for each model (--out or --hub is required)", Path, metavar="DIR"),
        opt("--hub", "push a repository for each model (or --out; required)", NAMESPACE, metavar="ORG"),
        required=True,
    ),
    opt("--shard", "only part I of N, 1/N to N/N", _shard, "1/1", metavar="I/N"),
    resume_hint=AGAIN,
)
def bake(args: argparse.Namespace) -> int:
    """Predict the weights of many architectures; continues where it was stopped."""
    from ..utils.ranks import gather, share

    source = read_source(args)
    if source.initialisation or source.plus:
        raise UserError(f"{source} is not a GHN alone: there is no prediction to share. Name a GHN, e.g. ghn2.")
    source = source.prediction
    names = _architectures(args.models)
    (part, parts), (rank, ranks) = args.shard, share()
    mine = names[part + rank * parts :: parts * ranks]
    if args.out is None:
        need_hub(f"{args.hub}/NAME")
    else:
        args.out.mkdir(parents=True, exist_ok=True)
    args.device = args.device or device_of_rank()
    rows = []
    for arch in over(mine, "bake", show=None if rank == 0 else False, unit="model", stays=True):
        rows.append((arch, *_one(argparse.Namespace(**{**vars(args), "arch": arch}), source)))
    # A rank that ended with an error while others are at work would make torchrun end them all.
    everything = sorted(row for text in gather("bake", json.dumps(rows)) for row in json.loads(text))
    if rank == 0:
        data = [dict(zip(("architecture", "state", "where"), row, strict=True)) for row in everything]
        show(args, data, lambda: table(("architecture", "", "where, or why not"), everything))
    return 1 if any(state == FAILED for _, state, _ in everything) else 0


def _one(args: argparse.Namespace, source: Source) -> tuple[str, str]:
    """The state of one architecture, and where it is or why it failed."""
    try:
        key, name = model_key(args, source)
        return _to_folder(args, source, key, args.out / name) if args.out else _to_hub(args, source, key, name)
    except Exception as error:  # of any type: the other architectures go on
        _logger.debug("%s:", args.arch, exc_info=True)
        _logger.error("%s: %s", args.arch, one_line(error))
        return FAILED, f"{type(error).__name__}: {one_line(error)}"


def _to_folder(args: argparse.Namespace, source: Source, key: str, folder: Path) -> tuple[str, str]:
    from ..weights.push import write_folder

    if _holds(folder, key):
        return "was there", str(folder)
    model, options, report, seed = build_initialised(args, source)
    with writing(folder, folder=True) as temporary:
        write_folder(temporary, model, replace(report, key=key), options, seed)
    return "baked", str(folder)


def _holds(folder: Path, key: str) -> bool:
    """Whether a folder holds the weights of a key, as far as metadata and file length tell."""
    from ..weights.files import WeightsError, read_about
    from ..weights.hub import CONFIG, WEIGHTS, read_config

    try:
        about = read_about(folder / WEIGHTS)
        config = read_config(folder / CONFIG)
    except (OSError, WeightsError):
        return False
    return about.get("key") == key and config == {"key": key, "digest": about.get("digest")}


def _to_hub(args: argparse.Namespace, source: Source, key: str, name: str) -> tuple[str, str]:
    from ..weights.hub import locate
    from ..weights.push import push_finished

    repo = f"{args.hub}/{name}"
    revision, there = locate(repo, key)
    if there is not None:
        return "was there", f"{repo}@{revision}"
    model, options, report, seed = build_initialised(args, source)
    return "baked", push_finished(model, repo, replace(report, key=key), options, seed)


def _architectures(patterns: str) -> list[str]:
    """The architectures that match any of the patterns, each once."""
    import timm

    names: list[str] = []
    for pattern in filter(None, map(str.strip, patterns.split(","))):
        found = timm.list_models(pattern)
        if not found:
            raise UserError(f"No timm architecture matches {pattern!r}.{did_you_mean(pattern, timm.list_models())}")
        names += found
    if not names:
        raise UserError("--models names no architecture.")
    return list(dict.fromkeys(names))
