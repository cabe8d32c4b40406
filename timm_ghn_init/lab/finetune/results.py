"""Results in a file of one JSON object a line, which several processes may share."""

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    """A file of finished runs that several processes may share.

    A line is appended completely or not at all. A process claims a run by a lock in the folder FILE.unfinished, which
    the operating system releases when the process dies.

    Args:
        path: the .jsonl file, which need not exist. Its folder must exist.

    Example:
        >>> Runs("runs.jsonl").finished()  # key -> result  # doctest: +SKIP
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._locks = self.path.with_name(f"{self.path.name}.unfinished")
        self._read: tuple[int, dict[str, Record]] = (-1, {})
        self._warned: set[int] = set()  # numbers of lines

    def finished(self) -> dict[str, Record]:
        """The runs in the file, by key. Damaged lines are skipped with a warning."""
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._read[0]:
            self._read = (size, {record["key"]: record for record in self._sound()})
        return self._read[1]

    def _sound(self) -> Iterator[Record]:
        for n, record in _lines(self.path):
            if record is not None and is_run(record):
                yield record
            elif (record is None or record.get("kind") == "run") and n not in self._warned:
                self._warned.add(n)
                _logger.warning("%s, line %d: not a result of finetune, or damaged; skipped.", self.path, n)

    def append(self, record: Record) -> None:
        """Add a line; it is on disk when this returns."""
        from filelock import FileLock

        with FileLock(f"{self.path}.lock"):
            append(self.path, json.dumps(record, allow_nan=False).encode())

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may do a run: it is not finished, and no other process does it."""
        from filelock import FileLock, Timeout

        lock = FileLock(self._locks / f"{key}.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield key not in self.finished()
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # another run has a lock there
                self._locks.rmdir()


def read(path: Path) -> list[Record]:
    """The JSON objects of a file, in order; damaged lines are left out."""
    return [record for _, record in _lines(path) if record is not None]


def _lines(path: Path) -> Iterator[tuple[int, Record | None]]:
    """Line numbers, from 1 on, and their JSON objects; None for a line that is not one."""
    for n, line in enumerate(path.read_bytes().splitlines() if path.exists() else (), start=1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        yield n, record if isinstance(record, dict) else None


def is_run(record: Record) -> bool:
    """Whether a line of a file, which may come from anywhere, is a result of `run`."""
    try:
        trial = Trial(**record["trial"])
    except (KeyError, TypeError, ValueError):
        return False
    return trial.key == record.get("key") and all(kind.valid(record.get(name)) for name, kind in _RUN.items())


_NUMBER = or_none(number("a number", lambda value: True))
_SHARE = or_none(number("0 to 1", lambda value: 0 <= value <= 1))


def _mapping(wanted: str, valid: Callable[[str, Any], bool] = lambda name, value: True) -> Kind:
    return Kind(wanted, lambda m: isinstance(m, dict) and all(valid(name, value) for name, value in m.items()))


def _is_curve(name: str, value: Any) -> bool:
    kind = _SHARE if name.endswith("accuracy") else _NUMBER
    return isinstance(value, list) and all(map(kind.valid, value))


_RUN = {
    "kind": one_of("run"),
    **dict.fromkeys(("test_accuracy", "validation_accuracy"), _SHARE),
    "validation_loss": _NUMBER,
    "seconds": _mapping("seconds by stage", lambda name, value: _NUMBER.valid(value)),
    "curves": or_none(_mapping("lists of numbers", _is_curve)),
    "images": or_none(_mapping("counts by part", lambda name, value: whole().valid(value))),
    "classes": or_none(whole(1)),
    "finished": or_none(instance("a time", str)),
    "command": or_none(Kind("words", lambda v: isinstance(v, list) and all(isinstance(word, str) for word in v))),
    **dict.fromkeys(("versions", "machine", "stem"), or_none(_mapping("facts"))),
}


def settings(trial: Mapping[str, Any]) -> tuple[Any, ...]:
    """The settings that the runs of one row of the summary share: everything but the seed."""
    return tuple(sorted((n, v) for n, v in trial.items() if n not in ("seed", "stage") and v))


def hyper_parameters(trial: Mapping[str, Any]) -> str:
    """The hyper-parameters of the paper's Table 2, in a line."""
    t = trial
    return f"{t['opt']}, {t['epochs']} epochs, lr {t['lr']:g}, wd {t['weight_decay']:g}, {t['image_size']} px"


def summary(records: Iterable[Record]) -> list[Record]:
    """Mean and standard deviation over seeds of the final runs.

    Args:
        records: lines of a results file; those of searches and other kinds are left out.

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
    """Mean and standard deviation (n - 1); None if a value is missing, and no deviation of a single value."""
    if not values or any(v is None for v in values):
        return None, None
    known = [v for v in values if v is not None]
    return statistics.mean(known), statistics.stdev(known) if len(known) > 1 else None


def percent(score: tuple[float | None, float | None]) -> str:
    """A mean and its deviation, each from 0 to 1, in percent; "-" if there is none."""
    mean, std = score
    if mean is None:
        return "-"
    return f"{100 * mean:.1f}" if std is None else f"{100 * mean:.1f} ± {100 * std:.1f}"
