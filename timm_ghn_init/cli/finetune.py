"""`finetune`: what initialisations are worth for few-shot fine-tuning."""

import argparse
import ast
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..utils.checks import PROCESSES
from .arguments import AGAIN, Command, add_data, add_sources, number, option, seconds, whole
from .files import output_path
from .messages import UserError, mistakes, one_line, table
from .models import read_device
from .results import show

if TYPE_CHECKING:
    from ..lab.finetune import Trial
    from ..lab.finetune.plans import Each, Tuned
    from ..lab.finetune.search import Halving

INITS = ("rand", "orth", "ghn", "ghn-orth")


def add(command: Command) -> None:
    sub = command("finetune", finetune, go_on=AGAIN)
    sub.add_argument("arch", metavar="ARCH", help="an architecture of timm")
    what = f"which to compare; also pretrained, timm (default: {' '.join(INITS)}, or the preset's)"
    add_sources(sub, (), what, "--init")
    sub.add_argument("--preset", metavar="ARCH/INIT", help="hyper-parameters of the paper's Table 2; options go first")
    add_data(sub, "digits")
    sub.add_argument("--seeds", type=whole(1), default=5, metavar="K", help="runs of each (default: %(default)s)")
    sub.add_argument("-o", "--output", required=True, metavar="RUNS.jsonl", help="results, added to those there are")
    sub.add_argument("--device", help="default: CUDA if there is one, else CPU")
    sub.add_argument(
        "--workers", type=option(PROCESSES), default=2, metavar="N", help="that read a folder (default: %(default)s)"
    )
    add_trial_options(sub.add_argument_group("one run", "defaults are those of timm_ghn_init.lab.finetune.Trial"))
    search = sub.add_argument_group("choosing hyper-parameters on the validation images, for each initialisation")
    search.add_argument("--search", choices=("grid", "random", "halving"), help="the paper's grid, or part of it")
    search.add_argument(
        "--grid", nargs="*", default=[], metavar="NAME=A,B", help="values to try; options above fix one"
    )
    search.add_argument("--trials", type=whole(1), metavar="N", help="how many of them, at the most")
    search.add_argument("--time-budget", type=seconds, metavar="TIME", help="of training, e.g. 90m, for halving")


def add_trial_options(group: Any) -> None:
    """Options in the words of timm's training script; what is not given is left to the preset or to `Trial`."""
    group.add_argument("--labels", type=whole(0), metavar="N", help="training images (default: 1000; 0: all)")
    group.add_argument("--validation", type=whole(0), metavar="N", help="images that choose hyper-parameters")
    group.add_argument("--data-seed", type=whole(0), metavar="N", help="of the choice of images")
    group.add_argument("--img-size", type=whole(1), dest="image_size", metavar="H")
    group.add_argument(
        "--keep-stem", action="store_true", default=None, help="leave first layers as they are at 32 x 32"
    )
    group.add_argument("--epochs", type=whole(1), metavar="N")
    group.add_argument("--opt", choices=("sgd", "adamw"))
    group.add_argument("--lr", type=number)
    group.add_argument("--weight-decay", type=number)
    group.add_argument("-b", "--batch-size", type=whole(1), metavar="N")
    group.add_argument("--momentum", type=number)
    group.add_argument("--sched-on-updates", action="store_true", default=None, help="step the cosine with each update")
    group.add_argument("--clip-grad", type=number)
    group.add_argument("--smoothing", type=number)
    group.add_argument("--drop-path", type=number)
    group.add_argument("--model-ema-decay", type=number, dest="ema_decay")
    group.add_argument("--amp", action="store_true", default=None, help="bfloat16 autocast")


def finetune(args: argparse.Namespace) -> int:
    """Fine-tune an architecture from several initialisations with few labels; print mean and deviation over seeds.

    Finished runs are looked up in RUNS.jsonl, a run that was stopped goes on at its last checkpoint, and processes that
    write to one file, started by hand or by torchrun, share the runs.
    """
    from ..lab.finetune import Runs, work
    from ..lab.finetune.data import load
    from ..lab.finetune.plans import one_after_another

    output = output_path(args.output, (".jsonl",))
    device = read_device(args.device or _device_of_rank())
    runs = Runs(output)
    with mistakes(ValueError):
        plans = [_plan(trial, args) for trial in _trials(args)]
    with mistakes(ValueError):
        load(_trials(args)[0], args.data_dir)  # before the work
    with mistakes(ValueError), less_messages(args):  # a layer, for instance, that the model does not have
        work(one_after_another(plans), runs, data_dir=args.data_dir, device=device, workers=args.workers)
    if os.environ.get("RANK", "0") == "0":
        done = runs.finished()
        records = [done[t.key] for plan in plans for t in plan.final(done)]
        show(args, _as_data(records), lambda: _as_text(records))
    return 0


@contextmanager
def less_messages(args: argparse.Namespace) -> Iterator[None]:
    """One line for each run; what was initialised how is in the results, and shown with -v."""
    logger = logging.getLogger("timm_ghn_init.initialize")
    level = logger.level
    logger.setLevel(logging.WARNING if args.verbose == 0 else level)
    try:
        yield
    finally:
        logger.setLevel(level)


def _device_of_rank() -> str | None:
    """Under torchrun every process has a GPU of its own, as long as there are some."""
    import torch

    count, rank = torch.cuda.device_count(), os.environ.get("LOCAL_RANK")
    return f"cuda:{int(rank) % count}" if rank and count else None


def _trials(args: argparse.Namespace) -> "list[Trial]":
    """One for each initialisation: options, then the preset, then the protocol's defaults."""
    from ..lab.finetune import Trial
    from ..lab.finetune.presets import PRESETS

    if args.preset is not None and args.preset not in PRESETS:
        raise UserError(f"Unknown preset {args.preset!r}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[args.preset] if args.preset else {}
    inits = args.source or ([preset["init"]] if preset else INITS)
    return [Trial(**{**preset, **given(args), "init": init}) for init in inits]


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Options that are fields of `Trial`."""
    from ..lab.finetune import Trial

    names = {f.name for f in fields(Trial)} - {"init"}
    return {name: value for name, value in vars(args).items() if name in names and value is not None}


def _plan(trial: "Trial", args: argparse.Namespace) -> "Tuned | Halving | Each":
    from ..lab.finetune.plans import Each, Tuned
    from ..lab.finetune.search import SEARCHABLE, Halving, grid, sample

    if args.search is None:
        for option in ("grid", "trials", "time_budget"):
            if getattr(args, option):
                raise UserError(f"--{option.replace('_', '-')} needs --search.")
        return Each(trial, args.seeds)
    if args.time_budget is not None and args.search != "halving":
        raise UserError("--time-budget needs --search halving.")
    fixed = {name: [value] for name, value in given(args).items() if name in SEARCHABLE}
    candidates = grid(trial, {**fixed, **_grid_values(args.grid)})
    if args.search == "grid":
        return Tuned(candidates[: args.trials], args.seeds)
    candidates = sample(candidates, args.trials)
    return (
        Tuned(candidates, args.seeds) if args.search == "random" else Halving(candidates, args.seeds, args.time_budget)
    )


def _grid_values(pairs: Sequence[str]) -> dict[str, list[Any]]:
    """NAME=A,B -> values, as Python literals where they are some."""
    values: dict[str, list[Any]] = {}
    for pair in pairs:
        name, equals, texts = pair.partition("=")
        if not (name and equals and texts):
            raise UserError(f"--grid {pair}: is not NAME=A,B,...")
        values[name.replace("-", "_")] = [_literal(text) for text in texts.split(",")]
    return values


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _as_data(records: "list[dict[str, Any]]") -> "list[dict[str, Any]]":
    """The rows of the table; mean and deviation of each score as they are."""
    from ..lab.finetune.results import summary

    scores = ("validation_accuracy", "test_accuracy")
    return [row | {n: dict(zip(("mean", "std"), row[n], strict=True)) for n in scores} for row in summary(records)]


def _as_text(records: "list[dict[str, Any]]") -> str:
    from ..lab.finetune.results import percent, summary

    rows = []
    for row in summary(records):
        t = row["trial"]
        settings = f"{t['opt']}, {t['epochs']} epochs, lr {t['lr']:g}, wd {t['weight_decay']:g}, {t['image_size']} px"
        rows.append(
            (
                t["init"],
                percent(row["validation_accuracy"]),
                percent(row["test_accuracy"]),
                len(row["seeds"]),
                settings,
            )
        )
    header = ("initialisation", "validation %", "test %", "seeds", "hyper-parameters")
    first = records[0]
    stem = ", ".join(f"{name} {change}" for name, change in (first.get("stem") or {}).items()) or "as it is"
    labels = (first.get("images") or {"train": first["trial"]["labels"]})["train"]
    head = f"{first['trial']['arch']}, {first['trial']['data']}, {labels} labels; stem: {stem}"
    return f"{one_line(head)}\n\n{table(header, rows)}"
