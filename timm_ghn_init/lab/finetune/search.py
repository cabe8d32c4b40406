"""Candidates for a search of hyper-parameters."""

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ...sources import KEYS, is_source, parse_source
from ...utils.checks import InputError
from .presets import GRID, LEARNING_RATES
from .protocol import Trial, settled

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
