"""`train-ghn` and `eval-ghn`: a hypernetwork of one's own."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from ..checks import PROCESSES, multiple
from ..sources import is_source
from .arguments import Command, number, option, seconds, whole
from .messages import mistakes, table
from .models import read_device, read_source


def add(command: Command) -> None:
    sub = command("train-ghn", train_ghn, go_on="run the same command with --resume to go on")
    sub.add_argument("-o", "--output", required=True, metavar="DIR", help="folder of the run: checkpoint, log, GHN")
    sub.add_argument(
        "--data", default="formula", help="formula, digits, cifar10, fashion-mnist or a folder (default: %(default)s)"
    )
    sub.add_argument("--data-dir", metavar="DIR", help="where cifar10 and fashion-mnist lie or go to (default: data)")
    sub.add_argument("--classes", type=whole(2), default=100, metavar="N", help="of formula (default: %(default)s)")
    sub.add_argument("--steps", type=whole(1), default=10_000, help="of the optimiser (default: %(default)s)")
    sub.add_argument("--time-budget", type=seconds, metavar="TIME", help="stop after, e.g., 90m; --resume goes on")
    sub.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    sub.add_argument(
        "--begin-from", dest="start", metavar="GHN", help="begin from a GHN's file or name instead of from nothing"
    )
    sub.add_argument("--networks", type=whole(1), default=8, help="per step and process (default: %(default)s)")
    sub.add_argument("--batch-size", type=whole(2), default=32, help="images per network (default: %(default)s)")
    sub.add_argument("--pool", type=whole(1), default=4000, help="different networks in all (default: %(default)s)")
    sub.add_argument("--max-macs", type=number, help="multiplications per image of a network (default: 2e6)")
    sub.add_argument("--lr", type=number, default=1e-3, help="default: %(default)s")
    sub.add_argument("--clip", type=number, default=0.3, help="largest norm of the gradient (default: %(default)s)")
    sub.add_argument(
        "--hid", type=option(multiple(4)), default=32, help="width of node embeddings (default: %(default)s)"
    )
    sub.add_argument("--seed", type=whole(0), default=0)
    sub.add_argument("--device", help="default: CUDA if there is one, else CPU")
    sub.add_argument("--workers", type=option(PROCESSES), default=0, help="processes that prepare images")
    sub.add_argument("--threads", type=whole(1, 1024), help="of PyTorch on the CPU")

    sub = command("eval-ghn", eval_ghn)
    sub.add_argument("ghn", metavar="GHN", help="a GHN's file or name")
    sub.add_argument(
        "--data", default="formula", help="formula, digits, cifar10, fashion-mnist or a folder (default: %(default)s)"
    )
    sub.add_argument("--data-dir", metavar="DIR", help="where cifar10 and fashion-mnist lie or go to (default: data)")
    sub.add_argument("--networks", type=whole(8), default=40, help="held out ones (default: %(default)s)")
    sub.add_argument("--seed", type=whole(0), default=0)
    sub.add_argument("--device", help="default: CPU")
    sub.add_argument("--json", action="store_true", help="every network, for programs")


def train_ghn(args: argparse.Namespace) -> int:
    """Train a GHN on sampled networks, with images made by formula or your own."""
    import torch

    from ..training.loop import RESULT, TrainConfig, Trainer
    from ..training.networks import MAX_MACS

    if args.threads:
        torch.set_num_threads(args.threads)
    with mistakes(ValueError):
        config = TrainConfig(
            data=args.data,
            num_classes=args.classes,
            steps=args.steps,
            networks=args.networks,
            batch_size=args.batch_size,
            pool=args.pool,
            max_macs=MAX_MACS if args.max_macs is None else args.max_macs,
            lr=args.lr,
            clip=args.clip,
            seed=args.seed,
            start=args.start and _as_source(args.start),
            ghn=TrainConfig().ghn | {"hid": args.hid},
        )
    device = read_device(args.device)
    trainer = Trainer(
        config, args.output, resume=args.resume, device=device, data_dir=args.data_dir, workers=args.workers
    )
    trainer.run(args.time_budget)
    if trainer.rank == 0:
        print(Path(args.output) / RESULT)
    return 0


def eval_ghn(args: argparse.Namespace) -> int:
    """Accuracy of held-out networks with a GHN's parameters and no training, against random ones and chance."""
    from ..checkpoints.load import load_ghn
    from ..images.batches import open_images
    from ..training.evaluate import evaluate, summary

    ghn = load_ghn(read_source(_as_source(args.ghn)), read_device(args.device) or "cpu")
    with mistakes(ValueError):
        images = open_images(args.data, ghn.num_classes, args.data_dir)
        scores = evaluate(ghn, images, networks=args.networks, seed=args.seed)
    if args.json:
        print(json.dumps({"chance": 1 / images.num_classes, "scores": [asdict(s) for s in scores]}, indent=2))
        return 0
    rows = [(name, n, f"{predicted:.3f}", f"{random:.3f}") for name, n, predicted, random in summary(scores)]
    print(table(("networks", "number", "predicted", "random"), rows))
    print(f"\nAccuracy on held-out images of {images.name}, no training; chance is {1 / images.num_classes:.3f}.")
    return 0


def _as_source(text: str) -> str:
    """Names as they are, paths with `file:`, also those that lead nowhere: whoever reads it then says so."""
    path = Path(text)
    is_path = path.is_file() or (not is_source(text) and (path.suffix or len(path.parts) > 1))
    return f"file:{text}" if is_path else text
