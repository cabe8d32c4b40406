"""Results in a file of one JSON object a line, which several processes may share."""

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ...utils.checks import Kind, instance, number, one_of, or_none, whole
from ...utils.files import append
from ...utils.text import logger
from .protocol import Trial

_logger = logger(__name__)

Record = dict[str, Any]


class Runs:
    """The finished runs, and who is at work on the others.

    A line is appended whole or not at all. A run is claimed by a lock in a folder beside the file, which the operating
    system releases when the process dies; the folder also holds the checkpoints of runs that are not finished.

    Args:
        path: the .jsonl file. Its folder must exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._folder = self.path.with_name(f"{self.path.name}.unfinished")
        self._read: tuple[int, dict[str, Record]] = (-1, {})
        self._said: set[int] = set()  # numbers of lines

    def finished(self) -> dict[str, Record]:
        """The runs in the file, by key. What is none, or a damaged one, is said and passed over."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._read[0]:
            self._read = (size, {record["key"]: record for record in self._sound()})
        return self._read[1]

    def _sound(self) -> Iterator[Record]:
        for n, record in _lines(self.path):
            if record is not None and is_run(record):
                yield record
            elif (record is None or record.get("kind") == "run") and n not in self._said:
                self._said.add(n)
                _logger.warning("%s, line %d: no result of finetune, or a damaged one; passed over.", self.path, n)

    def append(self, record: Record) -> None:
        """Add a line; it is on disk when this returns."""
        from filelock import FileLock

        with FileLock(f"{self.path}.lock"):
            append(self.path, json.dumps(record, allow_nan=False).encode())

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether a run is ours to do: nobody has finished it, nobody else is at it."""
        from filelock import FileLock, Timeout

        self._folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._lock(key), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield key not in self.finished()
        finally:
            if not self.checkpoint(key).exists():  # it is finished, or failed before it could be gone on with
                self.discard(key)
            lock.release()

    def checkpoint(self, key: str) -> Path:
        """Where the state of an unfinished run is kept."""
        return self._folder / f"{key}.pt"

    def discard(self, key: str) -> None:
        """Remove what is kept of a run that is finished, or has not come far. Who claims it now looks in the file."""
        self.checkpoint(key).unlink(missing_ok=True)
        self._lock(key).unlink(missing_ok=True)
        with suppress(OSError):  # not empty
            self._folder.rmdir()

    def _lock(self, key: str) -> Path:
        return self._folder / f"{key}.lock"


def read(path: Path) -> list[Record]:
    """The lines that are complete, in their order."""
    return [record for _, record in _lines(path) if record is not None]


def _lines(path: Path) -> Iterator[tuple[int, Record | None]]:
    """The numbers of lines, from 1 on, and what they hold; None where that is no JSON object."""
    for n, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield n, record if isinstance(record, dict) else None


def is_run(record: Record) -> bool:
    """Whether a line of a file, which may come from anywhere, is what `run` returns."""
    try:
        trial = Trial(**record["trial"])
    except (KeyError, TypeError, ValueError):
        return False
    return trial.key == record.get("key") and all(kind.valid(record.get(name)) for name, kind in _RUN.items())


_SCORE = or_none(number("a number", lambda value: True))
_RUN = {
    "kind": one_of("run"),
    **dict.fromkeys(("test_accuracy", "validation_accuracy", "validation_loss"), _SCORE),
    "seconds": Kind("numbers", lambda value: isinstance(value, dict) and all(map(_SCORE.valid, value.values()))),
    "images": or_none(Kind("counts", lambda value: isinstance(value, dict) and whole().valid(value.get("train")))),
    "stem": or_none(instance("changes by layer", dict)),
}


def settings(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    """What the runs of one row of the summary have in common: all that a seed does not change."""
    return tuple(sorted((n, v) for n, v in trial.items() if n not in ("seed", "stage") and v))


def summary(records: Iterable[Record]) -> list[Record]:
    """Mean and standard deviation over seeds of the final runs.

    Args:
        records: lines of a results file; those of a search and others are passed over.

    Returns:
        One row for each setting, in the order of its first run: "trial" (of the first seed), "seeds", and for each of
        "test_accuracy" and "validation_accuracy" mean and standard deviation (n - 1; None for a single seed).
    """
    groups: dict[tuple[Any, ...], dict[int, Record]] = defaultdict(dict)
    for record in records:
        if record.get("kind") == "run" and record["trial"]["stage"] == "final":
            groups[settings(record["trial"])][record["trial"]["seed"]] = record
    return [
        {
            "trial": next(iter(runs.values()))["trial"],
            "seeds": sorted(runs),
            "test_accuracy": mean_and_std([r["test_accuracy"] for r in runs.values()]),
            "validation_accuracy": mean_and_std([r.get("validation_accuracy") for r in runs.values()]),
        }
        for runs in groups.values()
    ]


def mean_and_std(values: list[float | None]) -> tuple[float | None, float | None]:
    """Of all values; None where one is missing, and no deviation of a single one."""
    if not values or any(v is None for v in values):
        return None, None
    known = [v for v in values if v is not None]
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def percent(score: tuple[float | None, float | None]) -> str:
    """A mean and its deviation, each from 0 to 1, as people read them; "-" where there is none."""
    mean, std = score
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"
