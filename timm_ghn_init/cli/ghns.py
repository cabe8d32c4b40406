"""`list`, `fetch`, `train-ghn` and `eval-ghn`: the sources, the checkpoints of GHNs, and a GHN of your own."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..sources import DEFAULT, KNOWN, SUFFIXES, list_sources
from ..utils.checks import CLASSES, FINITE, PROCESSES, WIDTH, whole
from .arguments import AGAIN, RANDOM, as_source, command, flag, image_options, needed_source, opt, output, seconds
from .messages import UserError, table
from .models import read_device
from .results import show

if TYPE_CHECKING:
    from ..ghn import GHN


@command("list")
def list_known(args: argparse.Namespace) -> int:
    """List the sources, and which GHNs are on this machine."""
    from ..checkpoints.load import is_cached

    def row(
        source: str, description: str, cached: bool | None = None, licence: str | None = None, arxiv: str = ""
    ) -> dict[str, Any]:
        paper = f"arXiv:{arxiv}" if arxiv else None
        return {"source": source, "description": description, "cached": cached, "licence": licence, "paper": paper}

    names = dict.fromkeys(source.name for source in list_sources())
    ghns = [KNOWN[name] for name in names if name in KNOWN]
    rows = [
        row(DEFAULT, "the default: TIMM_GHN_DEFAULT, else ghn2, else the GHN that ships"),
        *(row(ghn.name, ghn.description, is_cached(ghn.name), ghn.license, ghn.arxiv) for ghn in ghns),
        row("file:PATH", f"a file of your own, {', '.join(SUFFIXES)}"),
        *(row(f.name, f.description, arxiv=f.arxiv) for source in list_sources() if (f := source.initialisation)),
    ]
    show(args, rows, lambda: _as_text(rows))
    return 0


def _as_text(rows: list[dict[str, Any]]) -> str:
    columns = ("source", "cached", "licence", "paper", "description")
    return (
        f"{table(columns, [[row[c] for c in columns] for row in rows])}\n\n"
        "Each GHN also with post-processing (ghn2-orth); all with options (ghn2-orth?layer=94&seed=1, orth?layer=37)\n"
        "and composed (ghn2-orth+mimetic: values of the right one replace those of the left one)."
    )


@command("fetch --source ghn2", needed_source("a GHN, see `list`"), resume_hint=AGAIN)
def fetch(args: argparse.Namespace) -> int:
    """Download the checkpoint of a GHN unless it is on this machine, and print its path."""
    from ..checkpoints import load as checkpoints

    path = checkpoints.fetch(args.source)
    show(args, {"path": path}, str(path))
    return 0


@command(
    "train-ghn --data path/to/images --time-budget 4h -o runs/mine",
    output("DIR", "folder of the run: checkpoint, log, GHN"),
    *image_options("formula", "fashion-mnist"),
    opt("--classes", "classes of formula", CLASSES, 100, metavar="N"),
    opt("--steps", "optimiser updates", whole(1), 10_000),
    opt("--time-budget", "stop after, e.g., 90m; --resume continues (default: none)", seconds, metavar="TIME"),
    flag("--resume", "continue from the folder's checkpoint"),
    opt("--begin-from", "start from a GHN (default: random)", as_source, dest="start", metavar="SOURCE"),
    opt("--networks", "networks per step and rank", whole(1), 8),
    opt("--batch-size", "images per network", whole(2), 32),
    opt("--pool", "different networks in all", whole(1), 4000),
    opt("--max-macs", "largest network, multiplications per image (default: 2.5e7)", FINITE),
    opt("--lr", "learning rate", FINITE, 1e-3),
    opt("--clip", "largest gradient norm", FINITE, 0.3),
    opt("--hid", "width of node embeddings", WIDTH, 32),
    RANDOM,
    opt("--device", "where to compute (default: CUDA if available, else CPU)"),
    opt("--workers", "processes that prepare images", PROCESSES, 0),
    opt("--threads", "PyTorch's CPU threads (default: PyTorch's)", whole(1, 1024)),
    resume_hint="run the same command with --resume to continue",
)
def train_ghn(args: argparse.Namespace) -> int:
    """Train a GHN on networks of timm's classes at random small sizes."""
    import torch

    from ..lab.training.loop import RESULT, TrainConfig, Trainer
    from ..lab.training.networks import MAX_MACS

    if args.threads:
        torch.set_num_threads(args.threads)
    same = ("steps", "networks", "batch_size", "pool", "lr", "clip", "seed", "start")
    config = TrainConfig(
        data=args.data or "fashion-mnist",
        num_classes=args.classes,
        max_macs=MAX_MACS if args.max_macs is None else args.max_macs,
        ghn=TrainConfig().ghn | {"hid": args.hid},
        **{name: getattr(args, name) for name in same},
    )
    device = read_device(args.device)
    trainer = Trainer(
        config, args.output, resume=args.resume, device=device, data_dir=args.data_dir, workers=args.workers
    )
    trainer.run(args.time_budget)
    if trainer.rank == 0:
        path = Path(args.output) / RESULT
        show(args, {"ghn": path, **asdict(trainer.state)}, str(path))
    return 0


@command(
    "eval-ghn --source runs/mine/ghn.safetensors",
    needed_source("a GHN: its name or file"),
    *image_options("formula", "those that it was trained on"),
    opt("--networks", "held-out networks", whole(8), 40),
    RANDOM,
    opt("--device", "where to compute (default: CPU)"),
)
def eval_ghn(args: argparse.Namespace) -> int:
    """Measure the accuracy of held-out networks with predicted parameters and no training."""
    from ..checkpoints.load import load_ghn
    from ..lab.images.batches import open_images
    from ..lab.training.evaluate import evaluate, summary

    ghn = load_ghn(args.source, read_device(args.device) or "cpu")
    images = open_images(args.data or _trained_on(ghn, args.source), args.data_dir, ghn.num_classes)
    scores = evaluate(ghn, images, networks=args.networks, seed=args.seed)
    chance = 1 / images.num_classes
    rows = list(summary(scores))
    groups = [dict(zip(("networks", "number", "predicted"), row, strict=True)) for row in rows]
    data = {"data": images.name, "chance": chance, "groups": groups, "scores": [asdict(s) for s in scores]}
    show(args, data, lambda: _scores_as_text(rows, data))
    return 0


def _trained_on(ghn: "GHN", source: str) -> str:
    """The name of the images in the GHN's file; of a folder it has no path."""
    from ..lab.images.batches import NAMES

    if ghn.trained_on is None or ghn.trained_on not in NAMES:
        said = "nothing" if ghn.trained_on is None else repr(ghn.trained_on[:80])
        raise UserError(f"{source}: its file says {said} about the images it was trained on. Name some with --data.")
    return ghn.trained_on


def _scores_as_text(rows: list[tuple[str, int, float]], data: dict[str, Any]) -> str:
    cells = [(name, n, f"{predicted:.3f}") for name, n, predicted in rows]
    return (
        f"{table(('networks', 'number', 'predicted'), cells)}\n\n"
        f"Accuracy on held-out images of {data['data']}, no training; chance is {data['chance']:.3f}."
    )
