"""Which trials to run next. A plan is a function of the results so far, so any number of processes can share it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...utils.checks import InputError
from ...utils.text import logger
from .protocol import Trial, settled
from .results import Record, Runs, hyper_parameters
from .train import run

_logger = logger(__name__)

Results = Mapping[str, Record]  # finished runs by key
Plan = Callable[[Results], list[Trial]]
SEARCH_SEED = 10_000  # of runs that choose hyper-parameters; final runs have seeds from 0 on


def work(plan: Plan, runs: Runs, *, data_dir: str | Path | None = None, poll: float = 1.0, **options: Any) -> None:
    """Run the trials of a plan that are not finished yet, together with any other process that works on them.

    Args:
        plan: returns the trials that can be run, given the finished ones; none at the end.
        runs: where results are looked up and appended.
        data_dir: folder of named data sets. Default: `data`.
        poll: seconds to wait if other processes are running all remaining trials.
        **options: `device`, `workers` and `progress` of `run`.

    Raises:
        ValueError: a trial of the plan is not as `settled(trial, data_dir)` returns it.
        Exception: as `run`; what was finished before is in the file.

    Example:
        >>> from timm_ghn_init.lab.finetune import Each, Runs, Trial, work
        >>> runs = Runs("runs.jsonl")
        >>> work(Each(Trial("resnet18", "orth", labels=100), seeds=3), runs)  # doctest: +SKIP
    """
    while todo := [t for t in plan(runs.finished()) if t.key not in runs.finished()]:
        for trial in todo:
            if settled(trial, data_dir) != trial:
                raise InputError(f"{trial.data}: use settled(trial, data_dir) for the trials of the plan.")
        if not any(_claimed(trial, runs, {"data_dir": data_dir, **options}) for trial in todo):
            time.sleep(poll)


def _claimed(trial: Trial, runs: Runs, options: dict[str, Any]) -> bool:
    """Run a trial unless another process does."""
    with runs.claim(trial.key) as ours:
        if ours:
            record = run(trial, **options)
            runs.append(record)
            _logger.info("%s", _one_line(record))
        return ours


def _one_line(record: Record) -> str:
    t, part = record["trial"], "test" if record["trial"]["stage"] == "final" else "validation"
    what = f"seed {t['seed']}" if part == "test" else hyper_parameters(t)
    seconds = sum(record["seconds"].values())
    return f"{t['arch']}, {t['init']}, {what}: {part} {100 * record[f'{part}_accuracy']:.1f} %, {seconds:.0f} s"


class Each:
    """The plan that runs one trial with several seeds.

    Args:
        trial: what to run.
        seeds: number of runs, with seeds from 0 on.
    """

    def __init__(self, trial: Trial, seeds: int) -> None:
        self.trials = [replace(settled(trial), stage="final", seed=seed) for seed in range(seeds)]

    def __call__(self, results: Results) -> list[Trial]:
        return [t for t in self.trials if t.key not in results]

    def final(self, results: Results) -> list[Trial]:
        """The runs that are reported."""
        return self.trials


class Tuned:
    """The plan that searches the best candidate on the validation images, then runs it with several seeds.

    With one round, every candidate is trained once. With more it is successive halving: each round trains for `FACTOR`
    times as many epochs as the one before, with a cosine schedule of its own, and the best third of a round enters
    the next. The search is read from the results: it can be interrupted, and several processes can share it.

    Args:
        candidates: trials that differ in what is to be chosen, in the order in which they are tried.
        seeds: number of final runs, with seeds from 0 on.
        rounds: of the search, at most; fewer if there are not enough epochs. With more than one, all candidates get
            the most epochs that one of them has.
        seconds: training time of the search, summed over its runs; None for unlimited. Every round has an equal part
            and starts no run after that, but at least one.

    Raises:
        ValueError: no candidates, or no validation images.
    """

    FACTOR = 3

    def __init__(self, candidates: Iterable[Trial], seeds: int, rounds: int = 1, seconds: float | None = None) -> None:
        self.candidates, self.seeds, self.seconds = searched(candidates), seeds, seconds
        epochs = max(t.epochs for t in self.candidates)
        if rounds > 1:
            self.candidates = searched(replace(t, epochs=epochs) for t in self.candidates)
        rounds = min(rounds, 1 + int(math.log(epochs, self.FACTOR) + 1e-9))
        self.parts = [self.FACTOR**i for i in reversed(range(rounds))]  # of the epochs, by round: 9, 3, 1

    def __call__(self, results: Results) -> list[Trial]:
        missing = self._search(results)[1]
        return missing or [t for t in self.final(results) if t.key not in results]

    def final(self, results: Results) -> list[Trial]:
        """The runs that are reported; none while the search is not finished."""
        if self._search(results)[1]:
            return []
        return [replace(self.best(results), stage="final", seed=seed) for seed in range(self.seeds)]

    def best(self, results: Results) -> Trial:
        """The best trial of the last round; the search must be finished."""
        return ranked(self._search(results)[0], results)[0]

    def all_trials(self) -> Iterator[Trial]:
        """Every candidate with the epochs of every round."""
        for part in self.parts:
            yield from (_shortened(t, part) for t in self.candidates)

    def _search(self, results: Results) -> tuple[list[Trial], list[Trial]]:
        """The trials of the last round that has begun, and those of them that are still to be run."""
        trials = pool = self.candidates
        for part in self.parts:
            trials = [_shortened(t, part) for t in pool]
            done = [t for t in trials if t.key in results]
            spent = sum(sum(results[t.key]["seconds"].values()) for t in done)
            used_up = self.seconds is not None and done and spent >= self.seconds / len(self.parts)
            if len(done) < len(trials) and not used_up:
                return trials, [t for t in trials if t.key not in results]
            trials = done
            best = {t.key for t in ranked(done, results)[: math.ceil(len(done) / self.FACTOR)]}
            pool = [t for t in pool if _shortened(t, part).key in best]
        return trials, []


def _shortened(trial: Trial, part: int) -> Trial:
    """A trial with a part of its epochs."""
    return replace(trial, epochs=max(1, round(trial.epochs / part)))


def one_after_another(plans: Sequence[Plan]) -> Plan:
    """The plan of several plans that do not depend on each other."""
    return lambda results: [trial for plan in plans for trial in plan(results)]


def searched(candidates: Iterable[Trial]) -> list[Trial]:
    """The runs that choose between candidates, without duplicates.

    Raises:
        ValueError: there are no candidates, or no validation images to choose by.
    """
    trials = [replace(settled(t), stage="search", seed=SEARCH_SEED) for t in candidates]
    if not trials or any(t.validation == 0 for t in trials):
        raise InputError("A search needs candidates, and validation images to choose by.")
    return list({t.key: t for t in trials}.values())


def ranked(trials: Sequence[Trial], results: Results) -> list[Trial]:
    """Finished trials, the highest validation accuracy first; among equals the lowest validation loss."""

    def score(trial: Trial) -> tuple[float, float]:
        record = results[trial.key]
        loss = record["validation_loss"]
        return -record["validation_accuracy"], math.inf if loss is None else loss

    return sorted((t for t in trials if t.key in results), key=score)
