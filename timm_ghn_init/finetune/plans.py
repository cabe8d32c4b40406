"""Which trials to run next. A plan is a function of the results so far, so any number of processes can share it."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .protocol import Trial, settled
from .results import Record, Runs
from .train import run

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
        Whatever `run` raises; what has been finished until then is in the file.
    """
    while todo := [t for t in plan(runs.finished()) if t.key not in runs.finished()]:
        if not any(_claimed(trial, runs, options) for trial in todo):
            time.sleep(poll)


def _claimed(trial: Trial, runs: Runs, options: dict[str, Any]) -> bool:
    """Run a trial unless somebody else does."""
    with runs.claim(trial.key) as ours:
        if ours:
            runs.append(run(trial, checkpoint=runs.checkpoint(trial.key), **options))
        if ours or trial.key in runs.finished():
            runs.discard(trial.key)
        return ours


def each(trials: Iterable[Trial]) -> Plan:
    """The plan that runs all of some trials, in their order."""
    todo = [settled(t) for t in trials]
    return lambda results: [t for t in todo if t.key not in results]


def one_after_another(plans: Sequence[Plan]) -> Plan:
    """The plan of several groups that do not depend on each other."""
    return lambda results: [trial for plan in plans for trial in plan(results)]


def tuned(candidates: Sequence[Trial], seeds: int) -> Plan:
    """The plan that runs candidates once, then the best of them with several seeds.

    Args:
        candidates: trials that differ in what is to be chosen.
        seeds: how often to run the best, with seeds from 0 on.
    """
    search = [settled(replace(t, stage="search", seed=SEARCH_SEED)) for t in candidates]

    def plan(results: Results) -> list[Trial]:
        missing = [t for t in search if t.key not in results]
        if missing:
            return missing
        chosen = best(search, results)
        final = [replace(chosen, stage="final", seed=seed) for seed in range(seeds)]
        return [t for t in final if t.key not in results]

    return plan


def best(trials: Sequence[Trial], results: Results) -> Trial:
    """The finished trial with the highest validation accuracy; among equals the one with the lowest loss."""

    def score(trial: Trial) -> tuple[float, float]:
        record = results[trial.key]
        loss = record["validation_loss"]
        return record["validation_accuracy"], float("-inf") if loss is None else -loss

    return max((t for t in trials if t.key in results), key=score)
