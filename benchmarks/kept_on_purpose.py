"""List the classifiers of timm and torchvision in which a source keeps values that the constructor set on purpose.

    python benchmarks/kept_on_purpose.py -o benchmarks/results/kept_on_purpose.md

Every architecture is created with ten classes and initialised from `ghn2-fashion`. In all others the rules of
`recipe/purpose.py` change nothing: every parameter gets the value that it would get without them.
"""

import argparse
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn
from tqdm import tqdm

from timm_ghn_init import init_model
from timm_ghn_init.recipe import purpose, unusual

SMALLEST = Path(__file__).parent.parent / "tests" / "smallest_models.json"
REASONS = (purpose.FROZEN, unusual.ZERO, unusual.CONSTANT, unusual.TABLE, purpose.OF_A_KEPT_LAYER, purpose.HEAD)
MOST_VALUES = 60_000_000


def classifiers() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """The smallest architecture of each of timm's modules, and torchvision's classifiers."""
    for name in sorted(set(json.loads(SMALLEST.read_text()).values())):
        yield name, lambda name=name: timm.create_model(name, num_classes=10)
    for name in torchvision.models.list_models(torchvision.models):
        yield f"torchvision {name}", lambda name=name: torchvision.models.get_model(name, weights=None, num_classes=10)


def kept(model: nn.Module) -> dict[str, list[str]]:
    """Reason -> names of the parameters that are kept for it."""
    found = defaultdict(list)
    for name, reason in init_model(model, "ghn2-fashion", progress=False).skipped.items():
        if reason in REASONS:
            found[reason].append(name)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.md")
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows, unchanged, left = [], [], []
    for name, create in tqdm(list(classifiers()), disable=None):
        try:
            model = create()
            if sum(p.numel() for p in model.parameters()) > MOST_VALUES:
                left.append(name)
                continue
            found = kept(model)
        except Exception as error:  # whatever a model raises is a result
            left.append(f"{name} ({type(error).__name__})")
            continue
        rows += [f"| {name} | {len(names)} | {reason} | `{names[0]}` |" for reason, names in found.items()]
        unchanged += [] if found else [name]
    lines = [
        "# Classifiers that keep parameters on purpose",
        "",
        *(__doc__ or "").splitlines()[2:],
        "",
        "| architecture | parameters kept | reason | example |",
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
