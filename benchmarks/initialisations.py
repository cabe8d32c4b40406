"""Train small networks from several initialisations: RAND, ORTH, GHN-ORTH, mimetic, select and compositions.

    python benchmarks/initialisations.py run -o initialisations.jsonl
    python benchmarks/initialisations.py table initialisations.jsonl

Every run is one line of the file, so a run that was stopped goes on where it was. Learning rates are chosen for each
initialisation, network and data set on held-out images of the first seed; the table is of the test images. One thread.
`select` takes the entries of a teacher of the same family, twice as wide, which is trained on Fashion-MNIST first.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from timm_ghn_init import init_model
from timm_ghn_init.lab.images.datasets import Split, load

RATES = (3e-4, 1e-3, 3e-3)
TEACHER_RATE = 1e-3
SOURCES = {
    "timm": "timm",
    "RAND": "rand",
    "ORTH": "orth",
    "GHN-ORTH": "ghn2-fashion-orth",
    "mimetic": "timm+mimetic",
    "mimetic, sines": "timm+mimetic?pos=1",
    "select": "select",
    "ORTH+mimetic": "orth+mimetic",
    "GHN-ORTH+mimetic": "ghn2-fashion-orth+mimetic",
    "RAND+mimetic, sines": "rand+mimetic?pos=1",
    "ORTH+mimetic, sines": "orth+mimetic?pos=1",
    "GHN-ORTH+mimetic, sines": "ghn2-fashion-orth+mimetic?pos=1",
    "select+mimetic, sines": "select+mimetic?pos=1",
}


class Network(NamedTuple):
    """A student and its teacher, by the size of images."""

    arch: str
    options: Callable[[int], dict[str, Any]]
    wider: dict[str, Any]


NETWORKS = {
    "vit": Network(
        "vit_tiny_patch16_224",
        lambda size: {"img_size": size, "patch_size": 8, "depth": 4, "embed_dim": 96, "num_heads": 3},
        {"embed_dim": 192},
    ),
    "convnext": Network(
        "convnext_atto",
        lambda size: {"depths": (1, 1, 3, 1), "dims": (24, 48, 96, 192), "patch_size": size // 16},
        {"dims": (48, 96, 192, 384)},
    ),
}


class Run(NamedTuple):
    """All that decides the result of a run."""

    data: str
    network: str
    size: int
    source: str
    rate: float
    seed: int
    images: int
    epochs: int

    @property
    def key(self) -> str:
        return json.dumps(self)


def build(run: Run, wide: bool = False, classes: int = 10) -> nn.Module:
    """The network, with timm's own initialisation."""
    network = NETWORKS[run.network]
    options = {**network.options(run.size), **(network.wider if wide else {})}
    torch.manual_seed(run.seed)
    return timm.create_model(network.arch, num_classes=classes, **options)


def initialise(model: nn.Module, run: Run, teacher: Path) -> None:
    source = run.source.removeprefix("timm").removeprefix("+")
    source = source.replace("select", f"select?from={NETWORKS[run.network].arch}&weights={teacher}")
    if source:
        init_model(model, source, seed=run.seed, input_size=run.size, progress=False)


def fit(model: nn.Module, images: Tensor, labels: Tensor, rate: float, epochs: int, seed: int) -> None:
    """AdamW, cosine, batches of 50 in a random order; no augmentation."""
    draw = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(images) // 50)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=draw).split(50):
            loss = F.cross_entropy(model(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    right = [(model(x).argmax(1) == y).sum() for x, y in zip(images.split(200), labels.split(200), strict=True)]
    return 100 * float(sum(right)) / len(labels)


def floats(split: Split, start: int, stop: int) -> tuple[Tensor, Tensor]:
    return split.images[start:stop].float() / 127.5 - 1, split.labels[start:stop]


def train_teacher(run: Run, path: Path, images: int, epochs: int, folder: str | None) -> None:
    """A wide network of the family, on Fashion-MNIST."""
    if path.exists():
        return
    model = build(run._replace(seed=100), wide=True)
    data = load("fashion-mnist", run.size, folder)
    fit(model, *floats(data.train, 0, images), TEACHER_RATE, epochs, 100)
    print(f"{path.name}: {accuracy(model, *floats(data.test, 0, 1000)):.1f} % of Fashion-MNIST", flush=True)
    torch.save(model.state_dict(), path)


def work(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """One run: accuracy on 300 held-out images and on the test images, %."""
    teacher = args.output.with_name(f"teacher-{run.network}-{run.size}.pth")
    if run.source.startswith("select"):
        train_teacher(run, teacher, args.teacher_images, args.teacher_epochs, args.data_dir)
    start = time.time()
    model = build(run)
    initialise(model, run, teacher)
    data = load(run.data, run.size, args.data_dir)
    held_out = len(data.train.labels) - 300
    fit(model, *floats(data.train, 0, min(run.images, held_out)), run.rate, run.epochs, run.seed)
    validation = accuracy(model, *floats(data.train, held_out, held_out + 300))
    test = accuracy(model, *floats(data.test, 0, 2000))
    return {**run._asdict(), "validation": validation, "test": test, "seconds": round(time.time() - start, 1)}


def read(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    found = (json.loads(line) for line in lines)
    return {Run(**{name: row[name] for name in Run._fields}).key: row for row in found}


def plan(args: argparse.Namespace, done: dict[str, dict[str, Any]]) -> Iterator[Run]:
    """The runs that are missing: all learning rates of the first seed, then the best rate of each for all seeds."""
    cells = [
        Run(data, network, size, source, 0.0, 0, args.images, args.epochs)
        for size, network, data in itertools.product(args.sizes, args.networks, args.data)
        for source in SOURCES.values()
        if "mimetic" not in source or network == "vit"
    ]
    for cell in cells:
        yield from (run for rate in RATES if (run := cell._replace(rate=rate)).key not in done)
    for seed, cell in itertools.product(range(1, args.seeds), cells):
        rate = best_rate(cell, done)
        run = cell._replace(rate=rate or 0.0, seed=seed)
        if rate is not None and run.key not in done:
            yield run


def best_rate(cell: Run, done: dict[str, dict[str, Any]]) -> float | None:
    found = [(done[run.key]["validation"], rate) for rate in RATES if (run := cell._replace(rate=rate)).key in done]
    return max(found)[1] if len(found) == len(RATES) else None


def run_all(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    done = read(args.output)
    while (run := next(plan(args, done), None)) is not None:
        row = work(run, args)
        with args.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
        done[run.key] = row
        print(
            f"{run.data} {run.network} {run.size} {run.source} {run.rate:g} {run.seed}: {row['test']:.1f}", flush=True
        )


def print_table(args: argparse.Namespace) -> None:
    done = read(args.output)
    cells = dict.fromkeys((r["data"], r["network"], r["size"], r["images"], r["epochs"]) for r in done.values())
    print("| initialisation | " + " | ".join(f"{d}, {n} at {s}" for d, n, s, _, _ in cells) + " |")
    print("|---|" + "---|" * len(cells))
    for label, source in SOURCES.items():
        texts = []
        for data, network, size, images, epochs in cells:
            cell = Run(data, network, size, source, 0.0, 0, images, epochs)
            rate = best_rate(cell, done)
            rows = [r for r in done.values() if Run(**{n: r[n] for n in Run._fields})[:5] == (*cell[:4], rate)]
            tests = [r["test"] for r in rows]
            spread = f" ± {statistics.stdev(tests):.1f}" if len(tests) > 1 else ""
            texts.append(f"{statistics.mean(tests):.1f}{spread} ({len(tests)})" if tests else "")
        print(f"| {label} | " + " | ".join(texts) + " |")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("run")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.jsonl")
    sub.add_argument("--data", nargs="+", default=["digits", "fashion-mnist"])
    sub.add_argument("--data-dir")
    sub.add_argument("--sizes", nargs="+", type=int, default=[32, 64])
    sub.add_argument("--networks", nargs="+", default=list(NETWORKS))
    sub.add_argument("--seeds", type=int, default=5)
    sub.add_argument("--images", type=int, default=1000)
    sub.add_argument("--epochs", type=int, default=12)
    sub.add_argument("--teacher-images", type=int, default=10000)
    sub.add_argument("--teacher-epochs", type=int, default=3)
    sub.set_defaults(act=run_all)
    sub = commands.add_parser("table")
    sub.add_argument("output", type=Path, metavar="FILE.jsonl")
    sub.set_defaults(act=print_table)
    args = parser.parse_args(argv)
    args.act(args)


if __name__ == "__main__":
    main()
