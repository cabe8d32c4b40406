"""`finetune`: what initialisations are worth for few-shot fine-tuning."""

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..utils.checks import FINITE, PROCESSES, whole
from .arguments import AGAIN, ARCH, Declare, command, flag, group, image_options, literal, opt, seconds, sources
from .files import output_path
from .messages import UserError, one_line, table
from .models import device_of_rank, read_device
from .results import show

if TYPE_CHECKING:
    from ..lab.finetune import Trial
    from ..lab.finetune.plans import Each, Tuned

INITS = ("rand", "orth", "ghn", "ghn-orth")


def run_options(seeds: int) -> tuple[Declare, ...]:
    """Data, machine and hyper-parameters; what is not given is left to the preset or to `Trial`."""
    return (
        *image_options("digits"),
        opt("--seeds", "final runs", whole(1), seeds, metavar="K"),
        opt("--device", "where to train (default: CUDA if available, else CPU)"),
        opt("--workers", "processes that read a folder of images", PROCESSES, 2, metavar="N"),
        group("one run (options of timm_ghn_init.lab.finetune.Trial)", *_TRIAL),
    )


_TRIAL = (
    opt("--labels", "training images; 0 for all (default: 1000)", whole(0), metavar="N"),
    opt("--validation", "validation images (default: 200 to 5000, by data set)", whole(0), metavar="N"),
    opt("--data-seed", "seed of the choice of images (default: 0)", whole(0), metavar="N"),
    opt("--img-size", "height and width, pixels (default: 32)", whole(1), dest="image_size", metavar="H"),
    flag("--keep-stem", "leave the first layers as they are at 32 x 32 pixels", default=None),
    opt("--epochs", "passes over the training images (default: 50)", whole(1), metavar="N"),
    opt("--opt", "optimiser (default: sgd)", choices=("sgd", "adamw")),
    opt("--lr", "initial learning rate (default: 0.01)", FINITE),
    opt("--weight-decay", "of all parameters (default: 1e-4)", FINITE),
    opt("-b --batch-size", "images per update (default: 96)", whole(1), metavar="N"),
    opt("--momentum", "of sgd (default: 0.9)", FINITE),
    flag("--sched-on-updates", "step the schedule after updates, not epochs", default=None),
    opt("--clip-grad", "largest gradient norm; 0 for any (default: 5)", FINITE),
    opt("--smoothing", "label smoothing, 0 to 1 (default: 0)", FINITE),
    opt("--drop-path", "rate of stochastic depth, 0 to 1 (default: 0)", FINITE),
    opt("--model-ema-decay", "decay of averaged weights; 0 for none (default: 0)", FINITE, dest="ema_decay"),
    flag("--amp", "train in bfloat16 autocast", default=None),
)
_SEARCH = (
    opt(
        "--search", "try the whole grid, random points of it, or successively fewer of them for longer "
        "(default: no search)", choices=("grid", "random", "halving"),
    ),
    opt(
        "--grid", "values to try; options above fix one (default: the paper's grid)", default=(), nargs="*",
        metavar="NAME=A,B",
    ),
    opt("--trials", "at most so many points (default: all)", whole(1), metavar="N"),
    opt(
        "--time-budget", "training time, for halving, e.g. 90m (default: unlimited)", seconds, metavar="TIME",
    ),
)  # fmt: skip


@command(
    "finetune resnet18 --source rand orth ghn-orth --labels 100 --epochs 30 -o runs.jsonl",
    ARCH,
    sources((), f"sources to compare; also pretrained, timm (default: {' '.join(INITS)}, or the preset's)"),
    opt("--preset", "the paper's Table 2; options replace its values (default: none)", metavar="ARCH/INIT"),
    opt("-o --output", "results are appended", required=True, metavar="RUNS.jsonl"),
    *run_options(seeds=5),
    group("choose hyper-parameters on the validation images, for each initialisation", *_SEARCH),
    resume_hint=AGAIN,
)
def finetune(args: argparse.Namespace) -> int:
    """Fine-tune an architecture from several initialisations; print mean and deviation over seeds.

    Finished runs are looked up in RUNS.jsonl. Processes that write to one file, started by hand or by torchrun, share
    the runs.
    """
    from ..lab.finetune import Runs, work
    from ..lab.finetune.data import load
    from ..lab.finetune.plans import one_after_another

    output = output_path(args.output, (".jsonl",))
    device = read_device(args.device or device_of_rank())
    runs = Runs(output)
    with less_messages(args):
        trials = _trials(args)
        plans = [_plan(trial, args) for trial in trials]
        load(trials[0], args.data_dir)  # before the work
        work(one_after_another(plans), runs, data_dir=args.data_dir, device=device, workers=args.workers)
    if os.environ.get("RANK", "0") == "0":
        done = runs.finished()
        records = [done[t.key] for plan in plans for t in plan.final(done)]
        show(args, _as_data(records), lambda: _as_text(records))
    return 0


@contextmanager
def less_messages(args: argparse.Namespace) -> Iterator[None]:
    """One line per run: the reports of the initialisations are in the results, and shown with -v."""
    loggers = [logging.getLogger(f"timm_ghn_init.{name}") for name in ("initialize", "recipe.pending")]
    levels = [logger.level for logger in loggers]
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(logging.WARNING if args.verbose == 0 else level)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _trials(args: argparse.Namespace) -> "list[Trial]":
    """A trial for each initialisation: options, then the preset, then the defaults of `Trial`."""
    from ..lab.finetune import Trial
    from ..lab.finetune.protocol import settled
    from ..lab.finetune.search import PRESETS

    if args.preset is not None and args.preset not in PRESETS:
        raise UserError(f"Unknown preset {args.preset!r}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[args.preset] if args.preset else {}
    inits = args.source or ([preset["init"]] if preset else INITS)
    trials = [Trial(**{**preset, **given(args), "init": init}) for init in dict.fromkeys(inits)]
    return [settled(trial, args.data_dir) for trial in trials]


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Options that are fields of `Trial`."""
    from ..lab.finetune import Trial

    names = {f.name for f in fields(Trial)} - {"init"}
    return {name: value for name, value in vars(args).items() if name in names and value is not None}


def _plan(trial: "Trial", args: argparse.Namespace) -> "Each | Tuned":
    from ..lab.finetune.plans import Each, Tuned
    from ..lab.finetune.search import SEARCHABLE, grid, sample

    if args.search is None:
        for name in ("grid", "trials", "time_budget"):
            if getattr(args, name):
                raise UserError(f"--{name.replace('_', '-')} needs --search.")
        return Each(trial, args.seeds)
    if args.time_budget is not None and args.search != "halving":
        raise UserError("--time-budget needs --search halving.")
    fixed = {name: [value] for name, value in given(args).items() if name in SEARCHABLE}
    candidates = grid(trial, {**fixed, **_grid_values(args.grid)})
    candidates = candidates[: args.trials] if args.search == "grid" else sample(candidates, args.trials)
    return Tuned(candidates, args.seeds, rounds=4 if args.search == "halving" else 1, seconds=args.time_budget)


def _grid_values(pairs: Sequence[str]) -> dict[str, list[Any]]:
    """NAME=A,B -> values."""
    values: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, texts = pair.partition("=")
        if not (name and equals and texts):
            raise UserError(f"--grid {pair}: is not NAME=A,B,...")
        values[name.replace("-", "_")] = [literal(text) for text in texts.split(",")]
    return values


def _as_data(records: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
    """The rows of the table, with mean and deviation of each score by name."""
    from ..lab.finetune.results import summary

    scores = ("validation_accuracy", "test_accuracy")
    return [row | {n: dict(zip(("mean", "std"), row[n], strict=True)) for n in scores} for row in summary(records)]


def _as_text(records: "list[dict[str, Any]]") -> str:
    from ..lab.finetune.results import hyper_parameters, percent, summary

    rows = [
        (
            row["trial"]["init"],
            percent(row["validation_accuracy"]),
            percent(row["test_accuracy"]),
            len(row["seeds"]),
            hyper_parameters(row["trial"]),
        )
        for row in summary(records)
    ]
    header = ("initialisation", "validation %", "test %", "seeds", "hyper-parameters")
    first = records[0]
    stem = ", ".join(f"{name} {change}" for name, change in (first.get("stem") or {}).items()) or "as it is"
    labels = (first.get("images") or {"train": first["trial"]["labels"]})["train"]
    head = f"{first['trial']['arch']}, {first['trial']['data']}, {labels} labels; stem: {stem}"
    return f"{one_line(head)}\n\n{table(header, rows)}"
