"""The runs of a results file, sorted into what a report shows. Files come from anywhere: what is no run is left out."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...utils.checks import FINITE, SEED, number
from ..finetune.results import Record, mean_and_std, settings
from .figures import Curve

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


@dataclass(frozen=True)
class Experiment:
    """What can be compared: rows for one architecture and one choice of images."""

    arch: str
    data: str
    labels: int
    rows: tuple[Row, ...]

    @property
    def best(self) -> Row | None:
        """The row whose test accuracy is above all others by more than the larger of two deviations, if one is."""
        known = sorted((row for row in self.rows if row.test[0] is not None), key=lambda row: -(row.test[0] or 0))
        noise = max((row.test[1] for row in known if row.test[1] is not None), default=math.inf)
        if len(known) < 2 or not all(_beyond(known[0].test, row.test, noise) for row in known[1:]):
            return None
        return known[0]

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing; None where the runs do not say, or not all the same."""
        classes = self._common("classes")
        return 1 / classes if classes else None

    @property
    def tested(self) -> int | None:
        """The number of test images, if it is that of all runs."""
        return self._common("images", "test")

    def _common(self, *names: str) -> int | None:
        found = set()
        for run in (run for row in self.rows for run in row.runs):
            value: Any = run
            for name in names:
                value = value.get(name)
            found.add(value)
        return next(iter(found)) if len(found) == 1 else None


def _beyond(upper: Score, lower: Score, noise: float) -> bool:
    """Whether one score is above another by more than the deviation; `noise` where each is of a single run."""
    deviations = [s for s in (upper[1], lower[1]) if s is not None]
    return (upper[0] or 0) - (lower[0] or 0) > max(deviations, default=noise)


def experiments(records: Iterable[Record]) -> tuple[list[Experiment], int]:
    """Sort the final runs of a results file.

    Args:
        records: lines of the file. Of two runs with the same settings and seed the last counts.

    Returns:
        The experiments in the order of their first run, and how many lines claim to be runs but are not sound.
    """
    claimed = [r for r in records if r.get("kind") == "run"]
    sound = [r for r in claimed if _is_sound(r)]
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], dict[int, Record]]] = {}
    for run in sound:
        trial = run["trial"]
        if trial["stage"] == "final":
            compared = (trial["arch"], trial["data"], run["images"]["train"])
            groups.setdefault(compared, {}).setdefault(settings(trial), {})[trial["seed"]] = run
    found = []
    for (arch, data, labels), by_settings in groups.items():
        trials = [next(iter(seeds.values()))["trial"] for seeds in by_settings.values()]
        rows = tuple(_row(trial, trials, seeds) for trial, seeds in zip(trials, by_settings.values(), strict=True))
        found.append(Experiment(arch, data, labels, rows))
    return found, len(claimed) - len(sound)


def curves(row: Row, name: str) -> Curve:
    """One of a run's curves: mean, least and most over the seeds that got to an epoch."""
    runs = [run["curves"].get(name, []) for run in row.runs]
    length = max(map(len, runs))
    by_epoch = [[c[i] for c in runs if i < len(c) and c[i] is not None] for i in range(length)]
    return Curve(
        row.label,
        [sum(values) / len(values) if values else None for values in by_epoch],
        [min(values, default=None) for values in by_epoch],
        [max(values, default=None) for values in by_epoch],
    )


def _row(trial: Mapping[str, Any], trials: list[Mapping[str, Any]], seeds: Mapping[int, Record]) -> Row:
    runs = tuple(seeds[seed] for seed in sorted(seeds))
    test, validation = (mean_and_std([r.get(f"{part}_accuracy") for r in runs]) for part in ("test", "validation"))
    return Row(_label(trial, trials), runs, test, validation)


def _label(trial: Mapping[str, Any], trials: list[Mapping[str, Any]]) -> str:
    """The initialisation, with the hyper-parameters that tell it from others of the same name."""
    same = [t for t in trials if t["init"] == trial["init"]]
    names = [n for n in trial if n not in ("seed", "stage", "ghn")]
    differing = [n for n in names if any(t.get(n) != trial[n] for t in same)]
    return ", ".join([trial["init"], *(f"{n} {trial[n]}" for n in differing)])


# -- what a run must have ----------------------------------------------------------------------------------------------


_is_share = number("a share", lambda value: 0 <= value <= 1).valid


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and value > 0)


def _is_curve(name: str, value: Any) -> bool:
    is_one = _is_share if name.endswith("accuracy") else FINITE.valid
    return isinstance(value, list) and all(v is None or is_one(v) for v in value)


def _is_trial(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), str) for name in ("arch", "init", "data", "stage"))
        and SEED.valid(value.get("seed"))
        and all(v is None or isinstance(v, str | bool) or FINITE.valid(v) for v in value.values())
    )


_SOUND: dict[str, Callable[[Any], bool]] = {
    "trial": _is_trial,
    "test_accuracy": _is_share,
    "validation_accuracy": lambda v: v is None or _is_share(v),
    "curves": lambda v: isinstance(v, dict) and all(_is_curve(*curve) for curve in v.items()),
    "images": lambda v: isinstance(v, dict) and type(v.get("train")) is int and _is_count(v.get("test")),
    "classes": _is_count,
    "finished": lambda v: v is None or isinstance(v, str),
    "command": lambda v: v is None or (isinstance(v, list) and all(isinstance(part, str) for part in v)),
    "versions": lambda v: v is None or isinstance(v, dict),
    "machine": lambda v: v is None or isinstance(v, dict),
    "stem": lambda v: v is None or isinstance(v, dict),
}


def _is_sound(record: Record) -> bool:
    return all(check(record.get(name)) for name, check in _SOUND.items())
