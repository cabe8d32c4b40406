"""`finetune`, `report` and `tune`: what initialisations are worth for few-shot fine-tuning."""

import argparse
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sources import parse_source
from ..utils.checks import FINITE, PROCESSES, check_architecture, whole
from .arguments import (
    AGAIN,
    ARCH,
    INITS,
    Declare,
    command,
    flag,
    group,
    image_options,
    literal,
    one_source,
    opt,
    output,
    seconds,
    sources,
)
from .files import output_path, picture_path, present, writing
from .messages import REPORTS, UserError, one_line, table
from .models import device_of_rank, read_device
from .results import show

if TYPE_CHECKING:
    from ..lab.finetune import Runs, Trial
    from ..lab.finetune.plans import Each, Tuned
    from ..lab.finetune.tuning import Tuning


def _run_options(seeds: int) -> tuple[Declare, ...]:
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
_SEARCHES = ("grid", "random", "halving")
_SEARCH = (
    opt("--search", "try all points of the grid, random ones, or fewer and fewer (default: none)", choices=_SEARCHES),
    opt("--grid", "to try; options above fix one (default: the paper's)", default=(), nargs="*", metavar="NAME=A,B"),
    opt("--trials", "at most so many points (default: all)", whole(1), metavar="N"),
    opt("--time-budget", "training time, for halving, e.g. 90m (default: unlimited)", seconds, metavar="TIME"),
)


@command(
    "finetune resnet18 --source rand orth ghn-orth --labels 100 --epochs 30 -o runs.jsonl",
    ARCH,
    sources((), f"sources to compare; also pretrained, timm (default: {' '.join(INITS)}, or the preset's)"),
    opt("--preset", "the paper's Table 2; options replace its values (default: none)", metavar="ARCH/INIT"),
    output("RUNS.jsonl", "results are appended"),
    *_run_options(seeds=5),
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

    path = output_path(args.output, (".jsonl",))
    device = read_device(args.device or device_of_rank())
    runs = Runs(path)
    _hide_reports(args)
    trials = _trials(args)
    plans = [_plan(trial, args) for trial in trials]
    load(trials[0], args.data_dir)  # before the work
    work(one_after_another(plans), runs, data_dir=args.data_dir, device=device, workers=args.workers)
    if os.environ.get("RANK", "0") == "0":
        done = runs.finished()
        records = [done[t.key] for plan in plans for t in plan.final(done)]
        show(args, _as_data(records), lambda: _as_text(records))
    return 0


def _hide_reports(args: argparse.Namespace) -> None:
    """One line per run: the reports of the initialisations are in the results, and shown with -v."""
    if args.verbose == 0:
        logging.getLogger(REPORTS).setLevel(logging.WARNING)


def _trials(args: argparse.Namespace) -> "list[Trial]":
    """A trial for each initialisation: options, then the preset, then the defaults of `Trial`."""
    from ..lab.finetune import Trial
    from ..lab.finetune.protocol import settled
    from ..lab.finetune.search import PRESETS

    if args.preset is not None and args.preset not in PRESETS:
        raise UserError(f"Unknown preset {args.preset!r}; there are {', '.join(PRESETS)}.")
    preset = PRESETS[args.preset] if args.preset else {}
    inits = args.source or ([preset["init"]] if preset else INITS)
    trials = [Trial(**{**preset, **_given(args), "init": init}) for init in dict.fromkeys(inits)]
    return [settled(trial, args.data_dir) for trial in trials]


def _given(args: argparse.Namespace) -> dict[str, Any]:
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
    fixed = {name: [value] for name, value in _given(args).items() if name in SEARCHABLE}
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

    rows = []
    for row in summary(records):
        scores = [percent(row[f"{part}_accuracy"]) for part in ("validation", "test")]
        rows.append((row["trial"]["init"], *scores, len(row["seeds"]), hyper_parameters(row["trial"])))
    header = ("initialisation", "validation %", "test %", "seeds", "hyper-parameters")
    first = records[0]
    stem = ", ".join(f"{name} {change}" for name, change in (first.get("stem") or {}).items()) or "as it is"
    labels = (first.get("images") or {"train": first["trial"]["labels"]})["train"]
    head = f"{first['trial']['arch']}, {first['trial']['data']}, {labels} labels; stem: {stem}"
    return f"{one_line(head)}\n\n{table(header, rows)}"


@command(
    "report runs.jsonl --correlations correlations.json -o report.html",
    opt("runs", "results of finetune", metavar="RUNS.jsonl"),
    opt(
        "--correlations",
        "of analyze correlations, shown too; repeatable",
        default=[],
        action="append",
        metavar="FILE.json",
    ),
    output("REPORT.html", "the page"),
)
def report(args: argparse.Namespace) -> int:
    """Write the results of finetune as one HTML page: table, curves, correlations, commands."""
    from ..lab.analysis import experiments, page
    from ..lab.finetune.results import read

    path = output_path(args.output, (".html",))
    runs = Path(args.runs)
    if not runs.is_file():
        raise UserError(f"{runs}: there is no such file. finetune ... -o {runs} writes one.")
    found, left_out = experiments(read(runs))
    if not found:
        raise UserError(f"{runs} holds no finished run of finetune.")
    measured = [_read_correlations(Path(path)) for path in args.correlations]
    text = page(found, measured, left_out)
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    show(args, {"output": path}, str(path))
    return 0


def _read_correlations(path: Path) -> Any:
    from ..lab.analysis import check_correlations

    content = path.read_bytes()
    try:
        data = json.loads(content)
        check_correlations(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not an output of analyze correlations: {error}") from error
    return data


@command(
    "tune resnet50 --source ghn2-orth --time-budget 20m -o tuned.svg",
    ARCH,
    one_source("ghn-orth", "a GHN with -orth"),
    opt("--time-budget", "training time in all, e.g. 20m (default: unlimited)", seconds, metavar="TIME"),
    output("FILE.svg|png|json", "accuracy by layer, with its numbers in FILE.json and the runs in FILE.jsonl"),
    *_run_options(seeds=3),
    resume_hint=AGAIN,
)
def tune(args: argparse.Namespace) -> int:
    """Find the first post-processed layer L and the noise beta for your network and images.

    Learning rates, L and beta are searched on validation images. The command prints the source to use, and its accuracy
    next to those of random and orthogonal parameters. An interrupted command continues from FILE.jsonl.
    """
    from ..lab.analysis import layer_figure
    from ..lab.finetune import Runs, work
    from ..lab.finetune.data import load
    from ..lab.finetune.tuning import Tuning

    source = parse_source(args.source)
    if not source.orth:
        raise UserError(f"{source} is not post-processed: there is no L to tune. Name a GHN with -orth.")
    path = picture_path(args)
    assert path is not None  # argparse requires it
    runs, device = Runs(path.with_suffix(".jsonl")), read_device(args.device)
    _hide_reports(args)
    trial = _tuned_trial(args, str(source))
    fixed: dict[str, Any] = {
        "rates": () if args.lr is None else (args.lr,),
        "fixed_epochs": args.epochs is not None,
    }
    tuning = Tuning(trial, _count_layers(args.arch), args.seeds, args.time_budget, **fixed)
    load(trial, args.data_dir)  # before the work
    work(tuning, runs, data_dir=args.data_dir, device=device, workers=args.workers)
    data = _summary(tuning, runs)
    present(args, path, data, layer_figure, _tuned_as_text)
    return 0


def _tuned_trial(args: argparse.Namespace, source: str) -> "Trial":
    from ..lab.finetune import Trial
    from ..lab.finetune.protocol import settled

    opt = {"opt": "adamw"} if args.arch.startswith("convnext") else {}  # as in the paper
    return settled(Trial(**{**opt, **_given(args), "init": source}), args.data_dir)


def _count_layers(arch: str) -> int:
    import timm
    import torch

    from ..recipe.postprocessing import list_layers

    check_architecture(arch)
    with torch.device("meta"):
        return len(list_layers(timm.create_model(arch)))


def _summary(tuning: "Tuning", runs: "Runs") -> dict[str, Any]:
    from ..lab.finetune.results import mean_and_std

    done = runs.finished()
    rows = []
    for title, trials in tuning.final(done).items():
        records = [done[t.key] for t in trials]
        scores = {part: mean_and_std([r[f"{part}_accuracy"] for r in records]) for part in ("validation", "test")}
        rows.append({"title": title, "init": trials[0].init, "lr": trials[0].lr, "seeds": len(records), **scores})
    return {
        "arch": tuning.trial.arch,
        "data": tuning.trial.data,
        "labels": tuning.trial.labels,
        "epochs": tuning.epochs(done),
        "layers": tuning.n_layers,
        "automatic": tuning.trial.init,
        "source": tuning.choice(done).init,
        "curve": tuning.curve(done),
        "compared": rows,
    }


def _tuned_as_text(data: dict[str, Any]) -> str:
    from ..lab.finetune.results import percent

    rows = [
        (row["title"], percent(row["validation"]), percent(row["test"]), f"{row['lr']:g}", row["init"])
        for row in data["compared"]
    ]
    head = f"{data['arch']} of {data['layers']} layers, {data['data']}, {data['epochs']} epochs"
    text = table(("", "validation %", "test %", "learning rate", "source"), rows)
    seeds = f"Mean and deviation of {data['compared'][0]['seeds']} seeds; all was chosen on validation images."
    return f"{head}\n\n{text}\n\n{seeds}\n\nUse this source:\n{data['source']}"
