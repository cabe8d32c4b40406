"""Which trials to run next. A plan is a function of the results so far, so any number of processes can share it."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...utils.checks import InputError
from ...utils.text import logger
from .protocol import Trial, settled
from .results import Record, Runs
from .train import run

_logger = logger(__name__)

Results = Mapping[str, Record]  # finished runs by key
Plan = Callable[[Results], list[Trial]]
SEARCH_SEED = 10_000  # of runs that choose hyper-parameters: none of those that are reported


def work(plan: Plan, runs: Runs, *, poll: float = 1.0, **options: Any) -> None:
    """Run the trials of a plan that are not finished yet, together with any other process that works on them.

    Args:
        plan: the trials that can be run with the results there are; none when all is done.
        runs: where results are looked up and added.
        poll: seconds to wait where all that is left is being done by others.
        **options: `data_dir`, `device` ... of `run`.

    Raises:
        Exception: whatever `run` raises; what has been finished until then is in the file.
    """
    while todo := [t for t in map(settled, plan(runs.finished())) if t.key not in runs.finished()]:
        if not any(_claimed(trial, runs, options) for trial in todo):
            time.sleep(poll)


def one_line(record: Record) -> str:
    """A finished run, for people."""
    t = record["trial"]
    seconds = f"{sum(record['seconds'].values()):.0f} s"
    if t["stage"] == "final":
        return f"{t['arch']}, {t['init']}, seed {t['seed']}: test {100 * record['test_accuracy']:.1f} %, {seconds}"
    settings = f"{t['opt']}, {t['epochs']} epochs, lr {t['lr']:g}, wd {t['weight_decay']:g}, {t['image_size']} px"
    return f"{t['arch']}, {t['init']}, {settings}: validation {100 * record['validation_accuracy']:.1f} %, {seconds}"


def _claimed(trial: Trial, runs: Runs, options: dict[str, Any]) -> bool:
    """Run a trial unless somebody else does."""
    with runs.claim(trial.key) as ours:
        if ours:
            record = run(trial, checkpoint=runs.checkpoint(trial.key), **options)
            runs.append(record)
            _logger.info("%s", one_line(record))
        if ours or trial.key in runs.finished():
            runs.discard(trial.key)
        return ours


class Each:
    """The plan that runs one trial with several seeds.

    Args:
        trial: what to run.
        seeds: how often, with seeds from 0 on.
    """

    def __init__(self, trial: Trial, seeds: int) -> None:
        self.trials = [replace(settled(trial), stage="final", seed=seed) for seed in range(seeds)]

    def __call__(self, results: Results) -> list[Trial]:
        return [t for t in self.trials if t.key not in results]

    def final(self, results: Results) -> list[Trial]:
        """The runs that are reported."""
        return self.trials


def one_after_another(plans: Sequence[Plan]) -> Plan:
    """The plan of several groups that do not depend on each other."""
    return lambda results: [trial for plan in plans for trial in plan(results)]


class Tuned:
    """The plan that runs candidates once, then the best of them with several seeds.

    Args:
        candidates: trials that differ in what is to be chosen.
        seeds: how often to run the best, with seeds from 0 on.
        changes: fields of the best that have other values then.
    """

    def __init__(self, candidates: Iterable[Trial], seeds: int, **changes: Any) -> None:
        self.search = searched(candidates)
        self.seeds, self.changes = seeds, {**changes, "stage": "final"}

    def __call__(self, results: Results) -> list[Trial]:
        missing = [t for t in self.search if t.key not in results]
        return missing or [t for t in self.final(results) if t.key not in results]

    def final(self, results: Results) -> list[Trial]:
        """The runs that are reported; none as long as the choice is open."""
        if not all(t.key in results for t in self.search):
            return []
        chosen = replace(best(self.search, results), **self.changes)
        return [replace(chosen, seed=seed) for seed in range(self.seeds)]


def searched(candidates: Iterable[Trial]) -> list[Trial]:
    """The runs that choose between candidates, no two of them the same.

    Raises:
        ValueError: there are no validation images to choose by, or no candidates.
    """
    trials = [replace(settled(t), stage="search", seed=SEARCH_SEED) for t in candidates]
    if not trials or any(t.validation == 0 for t in trials):
        raise InputError("Choosing hyper-parameters takes candidates, and validation images to choose by.")
    return list({t.key: t for t in trials}.values())


def best(trials: Sequence[Trial], results: Results) -> Trial:
    """The finished trial that comes first in `ranked`."""
    return ranked(trials, results)[0]


def ranked(trials: Sequence[Trial], results: Results) -> list[Trial]:
    """Finished trials, the highest validation accuracy first; among equals the lowest validation loss."""

    def score(trial: Trial) -> tuple[float, float]:
        record = results[trial.key]
        loss = record["validation_loss"]
        return -record["validation_accuracy"], math.inf if loss is None else loss

    return sorted((t for t in trials if t.key in results), key=score)
