"""Choosing hyper-parameters on the validation images."""

import itertools
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from ...sources import KEYS, is_source, parse_source
from ...utils.checks import InputError
from .plans import Results, best, ranked, searched
from .presets import GRID, LEARNING_RATES
from .protocol import Trial, settled

_OF_SOURCE = ("layer", "beta")  # hyper-parameters that belong to the initialisation
_FIELDS = {f.name for f in fields(Trial)} - {"arch", "init", "seed", "stage", "ghn"}
SEARCHABLE = (*sorted(_FIELDS - {"data", "data_seed", "validation"}), *_OF_SOURCE)


def grid(trial: Trial, values: Mapping[str, Sequence[Any]] | None = None) -> list[Trial]:
    """Every combination of hyper-parameters.

    Args:
        trial: everything else.
        values: field of `Trial`, or "layer" and "beta" of the source, -> values to try. They take the place of the
            paper's grid, or add to it. Without "lr", each optimiser has the paper's learning rates.

    Returns:
        Trials, no two of them the same: what a source has no use for is left out.

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
    """Candidates in a random order that is always the same, n of them or all."""
    shuffled = list(candidates)
    random.Random(0).shuffle(shuffled)
    return shuffled[:n]


def _with(trial: Trial, chosen: Mapping[str, Any]) -> Trial:
    own = {name: value for name, value in chosen.items() if name not in _OF_SOURCE}
    init = trial.init
    if is_source(init):
        source = parse_source(init)
        for name in _OF_SOURCE:
            if name in chosen and name in source.keys and (source.orth or source.baseline):
                source = replace(source, **{KEYS[name].field: chosen[name]})
        init = str(source)
    return replace(trial, init=init, ghn="" if init != trial.init else trial.ghn, **own)


class Halving:
    """The plan of successive halving: many candidates for a few epochs, the better third of them for longer.

    Each round trains for three times as many epochs as the one before, each with a cosine schedule of its own, the
    last one for all epochs of the candidates. The best of the last round is run with several seeds. What a round has
    tried is read from the results, so that a search that was stopped goes on, and several processes can share it.

    Args:
        candidates: in the order in which they are tried; they get the most epochs that one of them has.
        seeds: how often to run the best, with seeds from 0 on.
        seconds: for the search, summed over its runs; None for as long as it takes. Every round has the same part of
            it, and starts no run when that is used up, but at least one.
        factor: of epochs, and of candidates, from round to round.
        rounds: at the most; fewer where there are not enough epochs.
    """

    def __init__(
        self,
        candidates: Iterable[Trial],
        seeds: int,
        seconds: float | None = None,
        factor: int = 3,
        rounds: int = 4,
    ) -> None:
        trials = searched(candidates)
        epochs = max(t.epochs for t in trials)
        self.candidates = searched(replace(t, epochs=epochs) for t in trials)
        self.seeds, self.seconds, self.factor = seeds, seconds, factor
        rounds = min(rounds, 1 + int(math.log(epochs, factor) + 1e-9))
        self.epochs = [max(1, round(epochs / factor**i)) for i in reversed(range(rounds))]

    def __call__(self, results: Results) -> list[Trial]:
        tried, missing = self.last_round(results)
        return missing or [t for t in self._final(tried, results) if t.key not in results]

    def final(self, results: Results) -> list[Trial]:
        """The runs that are reported; none as long as the choice is open."""
        tried, missing = self.last_round(results)
        return [] if missing else self._final(tried, results)

    def last_round(self, results: Results) -> tuple[list[Trial], list[Trial]]:
        """The trials of the last round that has begun, and those of them that are still to be run."""
        pool, trials = self.candidates, self.candidates
        for epochs in self.epochs:
            trials = [replace(t, epochs=epochs) for t in pool]
            done = [t for t in trials if t.key in results]
            spent = sum(sum(results[t.key]["seconds"].values()) for t in done)
            used_up = self.seconds is not None and done and spent >= self.seconds / len(self.epochs)
            if len(done) < len(trials) and not used_up:
                return trials, [t for t in trials if t.key not in results]
            trials = done
            pool = ranked(done, results)[: math.ceil(len(done) / self.factor)]
        return trials, []

    def _final(self, tried: Sequence[Trial], results: Results) -> list[Trial]:
        return [replace(best(tried, results), stage="final", seed=seed) for seed in range(self.seeds)]
