"""`finetune`: what initialisations are worth for few-shot fine-tuning."""

import argparse
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..utils.checks import PROCESSES
from .arguments import AGAIN, Command, add_data, add_sources, literal, number, option, seconds, whole
from .files import output_path
from .messages import UserError, mistakes, one_line, table
from .models import device_of_rank, read_device
from .results import show

if TYPE_CHECKING:
    from ..lab.finetune import Trial
    from ..lab.finetune.plans import Each, Tuned

INITS = ("rand", "orth", "ghn", "ghn-orth")


def add(command: Command) -> None:
    example = "finetune resnet18 --source rand orth ghn-orth --labels 100 --epochs 30 -o runs.jsonl"
    sub = command("finetune", finetune, example, AGAIN)
    sub.add_argument("arch", metavar="ARCH", help="a timm architecture")
    add_sources(sub, (), f"sources to compare; also pretrained, timm (default: {' '.join(INITS)}, or the preset's)")
    sub.add_argument(
        "--preset", metavar="ARCH/INIT", help="hyper-parameters of the paper's Table 2; options replace them "
        "(default: none)",
    )  # fmt: skip
    sub.add_argument("-o", "--output", required=True, metavar="RUNS.jsonl", help="results are appended (required)")
    add_run_options(sub, seeds=5)
    search = sub.add_argument_group("choose hyper-parameters on the validation images, for each initialisation")
    search.add_argument(
        "--search", choices=("grid", "random", "halving"),
        help="try the whole grid, random points of it, or successively fewer of them for longer (default: no search)",
    )  # fmt: skip
    search.add_argument(
        "--grid", nargs="*", default=[], metavar="NAME=A,B",
        help="values to try; options above fix one (default: the paper's grid)",
    )  # fmt: skip
    search.add_argument("--trials", type=whole(1), metavar="N", help="at most so many points (default: all)")
    search.add_argument(
        "--time-budget", type=seconds, metavar="TIME", help="training time, for halving, e.g. 90m (default: unlimited)"
    )


def add_run_options(sub: argparse.ArgumentParser, seeds: int) -> None:
    """Data, machine and hyper-parameters; what is not given is left to the preset or to `Trial`."""
    add_data(sub, "digits")
    sub.add_argument("--seeds", type=whole(1), default=seeds, metavar="K", help="final runs (default: %(default)s)")
    sub.add_argument("--device", help="where to train (default: CUDA if available, else CPU)")
    sub.add_argument(
        "--workers", type=option(PROCESSES), default=2, metavar="N",
        help="processes that read a folder of images (default: %(default)s)",
    )  # fmt: skip
    group = sub.add_argument_group("one run (options of timm_ghn_init.lab.finetune.Trial)")
    group.add_argument("--labels", type=whole(0), metavar="N", help="training images; 0 for all (default: 1000)")
    group.add_argument(
        "--validation", type=whole(0), metavar="N", help="validation images (default: 200 to 5000, by data set)"
    )
    group.add_argument("--data-seed", type=whole(0), metavar="N", help="seed of the choice of images (default: 0)")
    group.add_argument(
        "--img-size", type=whole(1), dest="image_size", metavar="H", help="height and width, pixels (default: 32)"
    )
    group.add_argument(
        "--keep-stem", action="store_true", default=None, help="leave the first layers as they are at 32 x 32 pixels"
    )
    group.add_argument("--epochs", type=whole(1), metavar="N", help="passes over the training images (default: 50)")
    group.add_argument("--opt", choices=("sgd", "adamw"), help="optimiser (default: sgd)")
    group.add_argument("--lr", type=number, help="initial learning rate (default: 0.01)")
    group.add_argument("--weight-decay", type=number, help="of all parameters (default: 1e-4)")
    group.add_argument("-b", "--batch-size", type=whole(1), metavar="N", help="images per update (default: 96)")
    group.add_argument("--momentum", type=number, help="of sgd (default: 0.9)")
    group.add_argument(
        "--sched-on-updates", action="store_true", default=None, help="step the schedule after updates, not epochs"
    )
    group.add_argument("--clip-grad", type=number, help="largest gradient norm; 0 for any (default: 5)")
    group.add_argument("--smoothing", type=number, help="label smoothing, 0 to 1 (default: 0)")
    group.add_argument("--drop-path", type=number, help="rate of stochastic depth, 0 to 1 (default: 0)")
    group.add_argument(
        "--model-ema-decay", type=number, dest="ema_decay", help="decay of averaged weights; 0 for none (default: 0)"
    )
    group.add_argument("--amp", action="store_true", default=None, help="train in bfloat16 autocast")


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
    with mistakes(ValueError), less_messages(args):  # e.g. a layer that the model does not have
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
