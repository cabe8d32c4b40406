"""The candidates of a search: the paper's grid of hyper-parameters (Section 4), and those that it chose (Table 2)."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ...sources import KEYS, is_source, parse_source
from ...utils.checks import InputError
from .protocol import Trial, settled

GRID: dict[str, tuple[Any, ...]] = {
    "opt": ("sgd", "adamw"),
    "epochs": (50, 100, 200, 300),
    "weight_decay": (0.0001, 0.001, 0.01, 0.05, 0.1),
    "image_size": (224, 32),
}
"""Field of `Trial` -> the values that the paper's search tried; the learning rates depend on the optimiser."""

LEARNING_RATES: dict[str, tuple[float, ...]] = {
    "sgd": (0.025, 0.01, 0.005, 0.0025, 0.001),
    "adamw": (0.004, 0.001, 0.0004, 0.0001),
}

_OF_SOURCE = ("layer", "beta")  # hyper-parameters that belong to the initialisation
_NEVER = ("arch", "init", "seed", "stage", "ghn", "folder", "data", "data_seed", "validation")
SEARCHABLE = (*sorted({f.name for f in fields(Trial)} - set(_NEVER)), *_OF_SOURCE)


def grid(trial: Trial, values: Mapping[str, Sequence[Any]] | None = None) -> list[Trial]:
    """Every combination of hyper-parameters.

    Args:
        trial: everything else.
        values: field of `Trial`, or "layer" and "beta" of the source, -> values to try. They replace axes of the
            paper's grid or add to it. Without "lr", each optimiser has the paper's learning rates.

    Returns:
        Trials without duplicates: keys that a source does not have are left out.

    Raises:
        ValueError: no such hyper-parameter, or a value that it cannot have.
    """
    axes: dict[str, Sequence[Any]] = {**GRID, **(values or {})}
    for name in axes:
        if name not in SEARCHABLE:
            raise InputError(f"There is no hyper-parameter {name!r} to search; there are {', '.join(SEARCHABLE)}.")
    found: dict[str, Trial] = {}
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        for lr in (chosen.pop("lr"),) if "lr" in chosen else LEARNING_RATES.get(str(chosen["opt"]), (trial.lr,)):
            candidate = settled(_with(trial, {**chosen, "lr": lr}))
            found.setdefault(candidate.key, candidate)
    return list(found.values())


def sample(candidates: Sequence[Trial], n: int | None) -> list[Trial]:
    """n candidates, or all, in a random order that is always the same."""
    shuffled = list(candidates)
    random.Random(0).shuffle(shuffled)
    return shuffled[:n]


def _with(trial: Trial, chosen: Mapping[str, Any]) -> Trial:
    own = {name: value for name, value in chosen.items() if name not in _OF_SOURCE}
    if not is_source(trial.init):
        return replace(trial, **own)
    source = parse_source(trial.init)
    for name in _OF_SOURCE:
        if name in chosen and name in source.keys and (source.orth or source.initialisation):
            source = replace(source, **{KEYS[name].field: chosen[name]})
    return replace(trial, init=str(source), **own)


_FIELDS = ("init", "opt", "epochs", "lr", "weight_decay", "image_size", "batch_size", "drop_path")
# Table 2. Its L = 100 for ConvNeXt was corrected by the authors to 94 in their numbering, which is ours. Batch size and
# stochastic depth are those of the authors' code, whose ConvNeXt is torchvision's.
_TABLE_2: dict[str, tuple[Any, ...]] = {
    "resnet50/rand": ("rand", "sgd", 300, 0.01, 0.05, 32, 96, 0.0),
    "resnet50/orth": ("orth", "sgd", 300, 0.01, 0.05, 32, 96, 0.0),
    "resnet50/ghn": ("ghn2", "sgd", 300, 0.01, 0.01, 32, 96, 0.0),
    "resnet50/ghn-orth": ("ghn2-orth?layer=37&beta=3e-5", "sgd", 300, 0.01, 0.01, 32, 96, 0.0),
    "resnet50/pretrained": ("pretrained", "sgd", 200, 0.001, 1e-4, 224, 96, 0.0),
    "convnext_base/rand": ("rand", "adamw", 300, 0.001, 1e-4, 32, 48, 0.5),
    "convnext_base/orth": ("orth", "adamw", 300, 0.001, 1e-4, 32, 48, 0.5),
    "convnext_base/ghn": ("ghn2", "adamw", 300, 0.001, 0.1, 32, 48, 0.5),
    "convnext_base/ghn-orth": ("ghn2-orth?layer=94&beta=3e-5", "adamw", 300, 0.001, 0.1, 32, 48, 0.5),
    "convnext_base/pretrained": ("pretrained", "sgd", 300, 0.0025, 1e-4, 224, 48, 0.5),
}
PRESETS: dict[str, dict[str, Any]] = {name: dict(zip(_FIELDS, row, strict=True)) for name, row in _TABLE_2.items()}
"""ARCH/INIT -> fields of `Trial`."""
