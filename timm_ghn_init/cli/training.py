"""`train-ghn` and `eval-ghn`: a GHN of your own."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.checks import CLASSES, PROCESSES, WIDTH
from .arguments import Command, add_data, add_needed_source, as_source, number, option, seconds, whole
from .messages import UserError, mistakes, table
from .models import read_device
from .results import show

if TYPE_CHECKING:
    from ..ghn import GHN


def add(command: Command) -> None:
    hint = "run the same command with --resume to continue"
    sub = command("train-ghn", train_ghn, "train-ghn --data path/to/images --time-budget 4h -o runs/mine", hint)
    sub.add_argument(
        "-o", "--output", required=True, metavar="DIR", help="folder of the run: checkpoint, log, GHN (required)"
    )
    add_data(sub, "formula", default="fashion-mnist")
    sub.add_argument(
        "--classes", type=option(CLASSES), default=100, metavar="N", help="classes of formula (default: %(default)s)"
    )
    sub.add_argument("--steps", type=whole(1), default=10_000, help="optimiser updates (default: %(default)s)")
    sub.add_argument(
        "--time-budget", type=seconds, metavar="TIME", help="stop after, e.g., 90m; --resume continues (default: none)"
    )
    sub.add_argument("--resume", action="store_true", help="continue from the folder's checkpoint")
    sub.add_argument(
        "--begin-from", type=as_source, dest="start", metavar="SOURCE", help="start from a GHN (default: random)"
    )
    sub.add_argument("--networks", type=whole(1), default=8, help="networks per step and rank (default: %(default)s)")
    sub.add_argument("--batch-size", type=whole(2), default=32, help="images per network (default: %(default)s)")
    sub.add_argument("--pool", type=whole(1), default=4000, help="different networks in all (default: %(default)s)")
    sub.add_argument("--max-macs", type=number, help="largest network, multiplications per image (default: 2.5e7)")
    sub.add_argument("--lr", type=number, default=1e-3, help="learning rate (default: %(default)s)")
    sub.add_argument("--clip", type=number, default=0.3, help="largest gradient norm (default: %(default)s)")
    sub.add_argument("--hid", type=option(WIDTH), default=32, help="width of node embeddings (default: %(default)s)")
    _add_machine(sub, "CUDA if available, else CPU")
    sub.add_argument(
        "--workers", type=option(PROCESSES), default=0, help="processes that prepare images (default: %(default)s)"
    )
    sub.add_argument("--threads", type=whole(1, 1024), help="PyTorch's CPU threads (default: PyTorch's)")

    sub = command("eval-ghn", eval_ghn, "eval-ghn --source runs/mine/ghn.safetensors")
    add_needed_source(sub, "a GHN: its name or file")
    add_data(sub, "formula", "those that it was trained on")
    sub.add_argument("--networks", type=whole(8), default=40, help="held-out networks (default: %(default)s)")
    _add_machine(sub, "CPU")


def _add_machine(sub: argparse.ArgumentParser, device: str) -> None:
    sub.add_argument("--seed", type=whole(0), default=0, help="seed of everything random (default: %(default)s)")
    sub.add_argument("--device", help=f"where to compute (default: {device})")


def train_ghn(args: argparse.Namespace) -> int:
    """Train a GHN on networks of timm's classes at random small sizes."""
    import torch

    from ..lab.training.loop import RESULT, TrainConfig, Trainer
    from ..lab.training.networks import MAX_MACS

    if args.threads:
        torch.set_num_threads(args.threads)
    with mistakes(ValueError):
        config = TrainConfig(
            data=args.data or "fashion-mnist",
            num_classes=args.classes,
            steps=args.steps,
            networks=args.networks,
            batch_size=args.batch_size,
            pool=args.pool,
            max_macs=MAX_MACS if args.max_macs is None else args.max_macs,
            lr=args.lr,
            clip=args.clip,
            seed=args.seed,
            start=args.start,
            ghn=TrainConfig().ghn | {"hid": args.hid},
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


def eval_ghn(args: argparse.Namespace) -> int:
    """Measure the accuracy of held-out networks with predicted parameters and no training."""
    from ..checkpoints.load import load_ghn
    from ..lab.images.batches import open_images
    from ..lab.training.evaluate import evaluate, summary

    ghn = load_ghn(args.source, read_device(args.device) or "cpu")
    with mistakes(ValueError):
        images = open_images(args.data or _trained_on(ghn, args.source), args.data_dir, ghn.num_classes)
        scores = evaluate(ghn, images, networks=args.networks, seed=args.seed)
    chance = 1 / images.num_classes
    rows = list(summary(scores))
    groups = [dict(zip(("networks", "number", "predicted"), row, strict=True)) for row in rows]
    data = {"data": images.name, "chance": chance, "groups": groups, "scores": [asdict(s) for s in scores]}
    show(args, data, lambda: _as_text(rows, data))
    return 0


def _trained_on(ghn: "GHN", source: str) -> str:
    """The name of the images in the GHN's file; of a folder it has no path."""
    from ..lab.images.batches import NAMES

    if ghn.trained_on is None or ghn.trained_on not in NAMES:
        said = "nothing" if ghn.trained_on is None else repr(ghn.trained_on[:80])
        raise UserError(f"{source}: its file says {said} about the images it was trained on. Name some with --data.")
    return ghn.trained_on


def _as_text(rows: list[tuple[str, int, float]], data: dict[str, Any]) -> str:
    cells = [(name, n, f"{predicted:.3f}") for name, n, predicted in rows]
    return (
        f"{table(('networks', 'number', 'predicted'), cells)}\n\n"
        f"Accuracy on held-out images of {data['data']}, no training; chance is {data['chance']:.3f}."
    )
