"""The runs of a results file, sorted into what a report shows."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ..finetune.results import Record, is_run, mean_and_std, settings

Score = tuple[float | None, float | None]  # mean and standard deviation


@dataclass(frozen=True)
class Row:
    """The runs of one initialisation with the same hyper-parameters.

    Attributes:
        label: the initialisation, with what else tells the row from others of it.
        runs: one for each seed, in the order of their seeds.
        test, validation: accuracy after the last epoch, 0 to 1.
    """

    label: str
    runs: tuple[Record, ...]
    test: Score
    validation: Score

    @property
    def trial(self) -> Mapping[str, Any]:
        return self.runs[0]["trial"]

    @property
    def diverged(self) -> int:
        """The number of runs that have diverged."""
        return sum(bool(run.get("diverged")) for run in self.runs)

    def curve(self, name: str) -> list[list[float]]:
        """For each epoch the values of a curve ("test_accuracy" ...), of those runs that reached it."""
        curves = [(run.get("curves") or {}).get(name, []) for run in self.runs]
        return [[v for v in values if v is not None] for values in zip_longest(*curves)]


@dataclass(frozen=True)
class Experiment:
    """Results that can be compared: rows for one architecture and one choice of images."""

    arch: str
    data: str
    labels: int
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row | None:
        """The row whose test accuracy exceeds all others by more than the larger deviation; None if none does."""
        known = sorted((row for row in self.rows if row.test[0] is not None), key=lambda row: -(row.test[0] or 0))
        noise = max((row.test[1] for row in known if row.test[1] is not None), default=math.inf)
        if len(known) < 2 or not all(_beyond(known[0].test, row.test, noise) for row in known[1:]):
            return None
        return known[0]

    @property
    def most_seeds(self) -> int:
        """The number of runs of the row that has most."""
        return max(len(row.runs) for row in self.rows)

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing; None if the runs have no common number of classes."""
        classes = self._common("classes")
        return 1 / classes if classes else None

    @property
    def tested(self) -> int | None:
        """The number of test images; None if the runs have no common number."""
        return self._common("images", "test")

    def _common(self, *names: str) -> int | None:
        found = set()
        for run in (run for row in self.rows for run in row.runs):
            value: Any = run
            for name in names:
                value = (value or {}).get(name)
            found.add(value)
        return next(iter(found)) if len(found) == 1 else None


def _beyond(upper: Score, lower: Score, noise: float) -> bool:
    """Whether one score exceeds another by more than the deviation; `noise` stands in for that of single runs."""
    deviations = [s for s in (upper[1], lower[1]) if s is not None]
    return (upper[0] or 0) - (lower[0] or 0) > max(deviations, default=noise)


def experiments(records: Iterable[Record]) -> tuple[list[Experiment], int]:
    """Sort the final runs of a results file.

    Args:
        records: lines of the file, which may come from anywhere. The last of several runs with equal settings and
            seed counts.

    Returns:
        The experiments in the order of their first run, and the number of lines that claim to be runs but are not.

    Example:
        >>> from timm_ghn_init.lab.finetune.results import read
        >>> found, left_out = experiments(read(Path("runs.jsonl")))  # doctest: +SKIP
    """
    claimed = [r for r in records if r.get("kind") == "run"]
    sound = [r for r in claimed if is_run(r)]
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[int, Record]]] = {}
    for run in sound:
        trial = run["trial"]
        if trial["stage"] == "final":
            compared = (trial["arch"], trial["data"], (run.get("images") or {"train": trial["labels"]})["train"])
            groups.setdefault(compared, {}).setdefault(settings(trial), {})[trial["seed"]] = run
    found = []
    for (arch, data, labels), by_settings in groups.items():
        trials = [next(iter(seeds.values()))["trial"] for seeds in by_settings.values()]
        rows = tuple(_row(trial, trials, seeds) for trial, seeds in zip(trials, by_settings.values(), strict=True))
        found.append(Experiment(arch, data, labels, rows))
    return found, len(claimed) - len(sound)


def _row(trial: Mapping[str, Any], trials: list[Mapping[str, Any]], seeds: Mapping[int, Record]) -> Row:
    runs = tuple(seeds[seed] for seed in sorted(seeds))
    test, validation = (mean_and_std([r.get(f"{part}_accuracy") for r in runs]) for part in ("test", "validation"))
    return Row(_label(trial, trials), runs, test, validation)


def _label(trial: Mapping[str, Any], trials: list[Mapping[str, Any]]) -> str:
    """The initialisation, with the hyper-parameters that tell it from others of the same name."""
    same = [t for t in trials if t["init"] == trial["init"]]
    names = [n for n in trial if n not in ("seed", "stage")]
    differing = [n for n in names if any(t.get(n) != trial[n] for t in same)]
    return ", ".join([trial["init"], *(f"{n} {str(trial[n])[:12]}" for n in differing)])  # digests are long
