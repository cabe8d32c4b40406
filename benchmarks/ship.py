"""From a training run to the GHN that ships: evaluate it, write the file and the page about it.

    timm-ghn-init train-ghn -o runs/fashion --data fashion-mnist ...
    python benchmarks/depth.py --ghn file:runs/fashion/ghn.safetensors
    python benchmarks/ship.py runs/fashion --command "timm-ghn-init train-ghn ..." --depth 0.125 0.5 0.5

Writes the file in timm_ghn_init/data that `sources.SHIPPED` names, with configuration, command, log, evaluation, depth
and licence in its metadata, benchmarks/results/shipped-ghn.md and .svg. What `--notes` holds goes into the page as it
is.
"""

import argparse
import csv
import json
import math
import os
import platform
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open

from timm_ghn_init import load_ghn, save_ghn
from timm_ghn_init.graph import KINDS
from timm_ghn_init.lab.images.batches import open_images
from timm_ghn_init.lab.training.evaluate import Score, evaluate, summary
from timm_ghn_init.lab.training.loop import CHECKPOINT, LOG, RESULT
from timm_ghn_init.sources import KNOWN, SHIPPED

ROOT = Path(__file__).parents[1]
IMAGES = {
    "fashion-mnist": "Fashion-MNIST ([arXiv:1708.07747](https://arxiv.org/abs/1708.07747), MIT licence): 60,000 grey\n"
    "photographs of clothes in ten classes, brought to 32 x 32. It has seen no digit, no letter and no colour.",
}
PAGE = """# The GHN that ships: `{name}`

A GHN-2 ([arXiv:2110.13100](https://arxiv.org/abs/2110.13100)), {parameters:.2f} M parameters, {size:.1f} MB,
licence {license}, trained by this project on timm's classes at random small sizes
(`timm_ghn_init/lab/training/networks.py`) and on {about} It is what `ghn` means where the released
GHN-2 is neither on the machine nor to be downloaded.

It is real and it is small: hours of a CPU instead of the released GHN-2's days of a GPU, and small images
instead of ImageNet. Use the released GHN-2 if you can download it.

## Training

```sh
{command}
```

{steps} steps in {minutes:.0f} minutes, {networks} networks of {images} images each in a step: {total:,}
networks' worth, from a pool of {pool}. {skipped} steps were skipped because their gradient was not finite.
The machine: {machine}.{earlier}

![loss and accuracy while training](shipped-ghn.svg)

## Evaluation

Accuracy on held-out images of networks whose parameters are predicted and which were never trained, with the batch's
statistics in batch norms and layer scales of 1. There are {classes} classes: chance is {chance:.3f}. "test" are sampled
networks that were not trained on; timm's models are as they are, at 32 x 32, the ViT with patches of 4 x 4.

```sh
timm-ghn-init eval-ghn --source {name} --data {data} --networks {held_out}
```

| networks | number | predicted |
|---|---:|---:|
{table}

[transfer.md](transfer.md) shows what it is worth for training on other images.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder that train-ghn wrote")
    parser.add_argument("--command", required=True, help="with which it was trained")
    parser.add_argument("--machine", default=f"{platform.machine()}, {os.cpu_count()} cores")
    parser.add_argument("--earlier", type=Path, metavar="GHN", help="the GHN that the training began from")
    kinds = tuple(kind.upper() for kind in KINDS)
    parser.add_argument(
        "--depth", type=float, nargs=3, metavar=kinds, help="where post-processing begins, of all layers"
    )
    parser.add_argument("--layer-scale", type=float, help="the value that layer scales get")
    parser.add_argument("--notes", type=Path, metavar="FILE.md", help="to append to the page: how these were chosen")
    parser.add_argument("--networks", type=int, default=80)
    parser.add_argument("--data-dir", help="of Fashion-MNIST (default: data)")
    args = parser.parse_args()

    ghn = load_ghn(args.run / RESULT)
    checkpoint = torch.load(args.run / CHECKPOINT, weights_only=True, map_location="cpu")
    training = json.loads(checkpoint["config"]) | checkpoint["state"] | {"processes": checkpoint["world"]}
    images = open_images(training["data"], args.data_dir)
    scores = evaluate(ghn, images, networks=args.networks)
    ghn.depth = None if args.depth is None else dict(zip(KINDS, args.depth, strict=True))
    ghn.layer_scale = args.layer_scale
    target = KNOWN[SHIPPED].local_path
    assert target is not None
    target.parent.mkdir(exist_ok=True)
    save_ghn(ghn, target, metadata(args, training, scores))
    (ROOT / "benchmarks" / "results" / "shipped-ghn.md").write_text(page(args, training, scores, target))
    draw(args.run / LOG, ROOT / "benchmarks" / "results" / "shipped-ghn.svg", SHIPPED, ghn.num_classes)


def metadata(args: argparse.Namespace, training: dict, scores: list[Score]) -> dict[str, str]:
    return {
        "name": SHIPPED,
        "license": KNOWN[SHIPPED].license,
        "paper": "arXiv:2110.13100",
        "data": training["data"],
        "command": args.command,
        "machine": args.machine,
        "training": json.dumps(training | ({"start": args.earlier.name} if args.earlier else {})),
        "evaluation": json.dumps([asdict(s) for s in scores]),
        "log": (args.run / LOG).read_text(),
        **({"earlier": json.dumps(earlier_training(args.earlier))} if args.earlier else {}),
    }


def earlier_training(path: Path) -> dict:
    """How the GHN was trained that this training began from."""
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["training"])


def page(args: argparse.Namespace, training: dict, scores: list[Score], target: Path) -> str:
    ghn = load_ghn(target)
    chance = 1 / ghn.num_classes
    rows = [f"| {name} | {n} | {predicted:.3f} |" for name, n, predicted in summary(scores)]
    per_step = training["networks"] * training["processes"]
    text = PAGE.format(
        name=SHIPPED,
        parameters=sum(p.numel() for p in ghn.parameters()) / 1e6,
        size=target.stat().st_size / 1e6,
        license=KNOWN[SHIPPED].license,
        command=args.command,
        steps=training["step"],
        minutes=training["seconds"] / 60,
        networks=per_step,
        images=training["batch_size"],
        total=per_step * training["step"],
        pool=training["pool"],
        skipped=training["skipped_steps"],
        machine=args.machine,
        classes=ghn.num_classes,
        chance=chance,
        held_out=args.networks,
        table="\n".join(rows),
        data=training["data"],
        about=IMAGES[training["data"]],
        earlier=earlier_words(args),
    )
    return text + ("\n" + args.notes.read_text() if args.notes else "")


def earlier_words(args: argparse.Namespace) -> str:
    if args.earlier is None:
        return ""
    before = earlier_training(args.earlier)
    count = before["networks"] * before["processes"]
    return (
        f"\n\nIt began from a GHN of the same shape, of an earlier run on {before['data']}: {before['step']} steps in "
        f"{before['seconds'] / 60:.0f} minutes,\n{count} networks of {before['batch_size']} images each in a step, "
        f"from a pool of {before['pool']}."
    )


def draw(log: Path, path: Path, name: str, classes: int) -> None:
    """Loss and accuracy of the networks that are being trained on, with what guessing would have."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams.update({"svg.hashsalt": "timm_ghn_init", "svg.fonttype": "none"})
    with log.open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.3), layout="constrained")
    figure.suptitle(f"Training of {name}: networks with predicted parameters, {classes} classes", fontsize=10)
    panels = (
        ("loss", "cross-entropy, nats", "#0072b2", math.log(classes)),
        ("accuracy", "accuracy, %", "#009e73", 100 / classes),
    )
    for axis, (column, label, colour, chance) in zip(axes, panels, strict=True):
        scale = 100 if column == "accuracy" else 1
        axis.plot([r["step"] for r in rows], [scale * r[column] for r in rows], color=colour, linewidth=1)
        axis.axhline(chance, color="#66707a", linewidth=1, linestyle=(0, (4, 3)))
        axis.annotate(
            "chance",
            (1, chance),
            (0, 3),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            color="#66707a",
            fontsize=9,
        )
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
