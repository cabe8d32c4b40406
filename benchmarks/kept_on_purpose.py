"""List the networks of timm and torchvision in which a source keeps values that the constructor set on purpose.

    python benchmarks/kept_on_purpose.py -o benchmarks/results/kept_on_purpose.md

Every architecture is created with ten classes and initialised from `ghn2-fashion`. In classifiers that are not in the
table, the rules of `recipe/purpose.py` change nothing: every parameter gets the value that it would get without them.
"""

import argparse
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn
from tqdm import tqdm

from timm_ghn_init import init_model
from timm_ghn_init.recipe import purpose, unnormed, unusual

SMALLEST = Path(__file__).parent.parent / "tests" / "smallest_models.json"
REASONS = (purpose.FROZEN, unusual.ZERO, unusual.CONSTANT, unusual.TABLE, purpose.OF_A_KEPT_LAYER, purpose.HEAD)
REASONS += (unnormed.BIAS,)
MOST_VALUES = 60_000_000


def classifiers() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The smallest architecture of each of timm's modules, and torchvision's classifiers."""
    for name in sorted(set(json.loads(SMALLEST.read_text()).values())):
        yield name, lambda name=name: timm.create_model(name, num_classes=10)
    for name in torchvision.models.list_models(torchvision.models):
        yield f"torchvision {name}", lambda name=name: torchvision.models.get_model(name, weights=None, num_classes=10)


def others() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """torchvision's detectors, segmentation networks and optical flow."""
    families = torchvision.models.detection, torchvision.models.segmentation, torchvision.models.optical_flow
    for name in (name for family in families for name in torchvision.models.list_models(family)):
        weights = {"weights": None} if name.startswith("raft") else {"weights": None, "weights_backbone": None}
        yield f"torchvision {name}", lambda name=name, weights=weights: torchvision.models.get_model(name, **weights)


def kept(name: str, model: nn.Module) -> list[str]:
    """Rows of the table: how many parameters are kept for which reason, or scaled, and an example."""
    inputs = (torch.zeros(1, 3, 128, 128),) * 2 if "raft" in name else None
    report = init_model(model, "ghn2-fashion", example_inputs=inputs, progress=False)
    found = defaultdict(list)
    for parameter, reason in report.skipped.items():
        if reason in REASONS:
            found[reason].append(parameter)
    rows = [f"| {name} | {len(names)} | {reason} | `{names[0]}` |" for reason, names in found.items()]
    scaled = [match for note in report.notes if (match := re.match(r"(\d+) predicted weights .* are scaled", note))]
    return rows + [f"| {name} | {match[1]} | predicted and scaled: no norm behind it | |" for match in scaled]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows, unchanged, left = [], [], []
    for name, create in tqdm([*classifiers(), *others()], disable=None):
        try:
            model = create()
            if sum(p.numel() for p in model.parameters()) > MOST_VALUES:
                left.append(name)
                continue
            found = kept(name, model)
        except Exception as error:  # whatever a model raises is a result
            left.append(f"{name} ({type(error).__name__})")
            continue
        rows += found
        unchanged += [] if found else [name]
    lines = [
        "# Parameters that are kept on purpose, or scaled",
        "",
        *(__doc__ or "").splitlines()[2:],
        "",
        "| architecture | parameters | reason | example |",
        "|---|---:|---|---|",
        *rows,
        "",
        f"Unchanged ({len(unchanged)}): {', '.join(unchanged)}.",
        "",
        f"Not measured ({len(left)}, more than {MOST_VALUES // 10**6} M parameters or an error): {', '.join(left)}.",
    ]
    args.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
