"""`tune`: where the post-processing of a network begins, chosen on held-out images."""

import argparse
from typing import TYPE_CHECKING, Any

from ..sources import parse_source
from ..utils.checks import PROCESSES, InputError
from .analyze import picture_path, present
from .arguments import AGAIN, Command, add_data, add_source, option, seconds, whole
from .finetune import add_trial_options, given, less_messages
from .messages import UserError, mistakes, table
from .models import read_device

if TYPE_CHECKING:
    from ..lab.finetune import Runs
    from ..lab.finetune.tuning import Tuning


def add(command: Command) -> None:
    sub = command("tune", tune, go_on=AGAIN)
    sub.add_argument("arch", metavar="ARCH", help="an architecture of timm")
    add_source(sub, "ghn-orth")
    add_data(sub, "digits")
    sub.add_argument("--time-budget", type=seconds, metavar="TIME", help="of training, e.g. 20m (default: any)")
    sub.add_argument("--seeds", type=whole(1), default=3, metavar="K", help="of the comparison (default: %(default)s)")
    sub.add_argument(
        "-o", "--output", required=True, metavar="FILE.svg|png|json", help="the curve over L; runs are kept beside it"
    )
    sub.add_argument("--device", help="default: CUDA if there is one, else CPU")
    sub.add_argument(
        "--workers", type=option(PROCESSES), default=2, metavar="N", help="that read a folder (default: %(default)s)"
    )
    add_trial_options(sub.add_argument_group("one run", "defaults are those of timm_ghn_init.lab.finetune.Trial"))


def tune(args: argparse.Namespace) -> int:
    """Find the layer L and the noise beta of post-processing for one network and your images, by successive halving.

    Prints the source to use and what it is worth against random and orthogonal parameters with learning rates of their
    own. The runs are kept in FILE.jsonl beside the picture: the same command goes on where it was stopped.
    """
    from ..lab.analysis import layer_figure
    from ..lab.finetune import Runs, work
    from ..lab.finetune.data import load
    from ..lab.finetune.tuning import Tuning

    source = parse_source(args.source)
    if not source.orth:
        raise UserError(f"{source} is not post-processed: there is no L to tune. Name a GHN with -orth.")
    output = picture_path(args)
    assert output is not None  # argparse asks for it
    runs, device = Runs(output.with_suffix(".jsonl")), read_device(args.device)
    with mistakes(ValueError):
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
    with mistakes(ValueError), less_messages(args):
        work(tuning, runs, data_dir=args.data_dir, device=device, workers=args.workers)
    data = _summary(tuning, runs)
    present(args, output, data, lambda: layer_figure(data), lambda: _as_text(data))
    return 0


def _trial(args: argparse.Namespace, source: str) -> Any:
    from ..lab.finetune import Trial
    from ..lab.finetune.protocol import settled

    opt = {"opt": "adamw"} if args.arch.startswith("convnext") else {}  # as in the paper
    return settled(Trial(**{**opt, **given(args), "init": source}))


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
