"""`tune`: the layer at which post-processing begins, chosen on validation images."""

import argparse
from typing import TYPE_CHECKING, Any

from ..sources import parse_source
from ..utils.checks import InputError
from .analyze import picture_path, present
from .arguments import AGAIN, ARCH, command, one_source, opt, seconds
from .finetune import given, less_messages, run_options
from .messages import UserError, table
from .models import read_device

if TYPE_CHECKING:
    from ..lab.finetune import Runs, Trial
    from ..lab.finetune.tuning import Tuning


@command(
    "tune resnet50 --source ghn2-orth --time-budget 20m -o tuned.svg",
    ARCH,
    one_source("ghn-orth", "a GHN with -orth"),
    opt("--time-budget", "training time in all, e.g. 20m (default: unlimited)", seconds, metavar="TIME"),
    opt(
        "-o --output", "accuracy by layer, with its numbers in FILE.json and the runs in FILE.jsonl", required=True,
        metavar="FILE.svg|png|json",
    ),
    *run_options(seeds=3),
    resume_hint=AGAIN,
)  # fmt: skip
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
    output = picture_path(args)
    assert output is not None  # argparse requires it
    runs, device = Runs(output.with_suffix(".jsonl")), read_device(args.device)
    with less_messages(args):
        trial = _trial(args, str(source))
        tuning = Tuning(
            trial,
            _count_layers(args.arch),
            args.seeds,
            args.time_budget,
            rates=() if args.lr is None else (args.lr,),
            fixed_epochs=args.epochs is not None,
        )
        load(trial, args.data_dir)  # before the work
        work(tuning, runs, data_dir=args.data_dir, device=device, workers=args.workers)
    data = _summary(tuning, runs)
    present(args, output, data, layer_figure, _as_text)
    return 0


def _trial(args: argparse.Namespace, source: str) -> "Trial":
    from ..lab.finetune import Trial
    from ..lab.finetune.protocol import settled

    opt = {"opt": "adamw"} if args.arch.startswith("convnext") else {}  # as in the paper
    return settled(Trial(**{**opt, **given(args), "init": source}), args.data_dir)


def _count_layers(arch: str) -> int:
    import timm
    import torch

    from ..recipe.postprocessing import list_layers

    if not timm.is_model(arch):
        raise InputError(f"Unknown architecture {arch!r}; timm.list_models() lists all.")
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


def _as_text(data: dict[str, Any]) -> str:
    from ..lab.finetune.results import percent

    rows = [
        (row["title"], percent(row["validation"]), percent(row["test"]), f"{row['lr']:g}", row["init"])
        for row in data["compared"]
    ]
    head = f"{data['arch']} of {data['layers']} layers, {data['data']}, {data['epochs']} epochs"
    text = table(("", "validation %", "test %", "learning rate", "source"), rows)
    seeds = f"Mean and deviation of {data['compared'][0]['seeds']} seeds; all was chosen on validation images."
    return f"{head}\n\n{text}\n\n{seeds}\n\nUse this source:\n{data['source']}"
