"""How far work has come: a bar in a terminal, elsewhere (SLURM, nohup, CI) a line of the log each minute.

The one place for all that may take long. Lines are messages of level INFO, with figures, rate and time left as timm's
train.py prints them: the command line shows them unless it is told -q, and a program shows them as it shows its log.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from .text import clean, logger

T = TypeVar("T")
Figures = Mapping[str, float | str]
_logger = logger(__name__)

EVERY = 60.0  # seconds between two lines
_FRESH = 0.5  # seconds for which figures on a bar are good: making them may mean to wait for a GPU
_LEAST_BAR = 10  # characters; a shorter one says nothing

# From the widest to the narrowest, when the terminal has no room for a bar: the numbers stay.
_WITHOUT_BAR = (
    "{desc}: {percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]",
    "{n_fmt}/{total_fmt} <{remaining}{postfix}",
)


class Progress:
    """Shows how far something has come, inside a `with`.

    Args:
        what: is done.
        total: how many steps there are; None where nobody knows.
        show: True: a bar; False: nothing; None: a bar in a terminal, lines where there is none.
        done: steps that were done before.
        unit: of steps.
        delay: seconds after which a bar appears: what is short needs none.
        stays: whether a bar that is full stays where it is.
        sizes: steps are bytes.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        *,
        show: bool | None = None,
        done: int = 0,
        unit: str = "step",
        delay: float = 2.0,
        stays: bool = False,
        sizes: bool = False,
    ) -> None:
        self.what, self.total, self.done, self.unit, self.sizes = clean(what), total, done, unit, sizes
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None
        if show or (show is None and is_terminal):
            options = {"initial": done, "unit": unit, "leave": stays, "unit_scale": sizes, "dynamic_ncols": True}
            self._bar = _bar_class()(desc=self.what, total=total, delay=0 if show else delay, **options)
        self._lines = show is None and not is_terminal
        self._begun = self._said = time.monotonic()
        self._done_then = done  # when the last line was said
        self._fresh = -1.0

    def step(self, n: int = 1, figures: Callable[[], Figures] | None = None) -> None:
        """So many more steps are done; `figures` gives what there is to say of them, when it is said."""
        self.done += n
        now = time.monotonic()
        if self._bar is not None:
            if figures is not None and now >= self._fresh:
                self._fresh = now + _FRESH
                self._bar.set_postfix_str(", ".join(_shown(figures(), " ")), refresh=False)
            self._bar.update(n)
        elif self._lines and now - self._said >= EVERY:
            self._say(now, figures() if figures else {})

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def _say(self, now: float, figures: Figures) -> None:
        rate = (self.done - self._done_then) / (now - self._said)
        self._said, self._done_then = now, self.done
        size = size_of if self.sizes else str
        place = size(self.done)
        left = {}
        if self.total:
            place = f"{place.rjust(len(size(self.total)))}/{size(self.total)} ({self.done / self.total:4.0%})"
            left = {"left": clock((self.total - self.done) / rate) if rate else "?"}
        speed = f"{size_of(rate)}/s" if self.sizes else _speed(rate, self.unit)
        _logger.info(
            "%s", "  ".join((f"{self.what} [{place}]", *_shown({**figures, "rate": speed, **left, **figures}, ": ")))
        )


def over(items: Iterable[T], what: str, total: int | None = None, **options: Any) -> Iterator[T]:
    """Items, and how many of them are done; options as of `Progress`."""
    count = len(items) if total is None and isinstance(items, Sized) else total
    with Progress(what, count, **options) as progress:
        for item in items:
            yield item
            progress.step()


@contextmanager
def aside() -> Iterator[None]:
    """Inside, lines can be printed to stderr: bars make room for them."""
    if (tqdm := sys.modules.get("tqdm")) is None:
        yield
        return
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield


@lru_cache
def _bar_class() -> Any:
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        """A bar that yields to the numbers where a terminal is narrow."""

        @staticmethod
        def format_meter(n: float, total: float | None, elapsed: float, ncols: int | None = None, **facts: Any) -> str:
            def formatted(form: str | None, ncols: int | None = None) -> str:
                return tqdm.format_meter(n, total, elapsed, ncols=ncols, **{**facts, "bar_format": form})

            if not ncols or not total or len(formatted("{l_bar}{r_bar}")) + _LEAST_BAR <= ncols:
                return formatted(None, ncols)
            texts = [formatted(form) for form in _WITHOUT_BAR]
            return next((text for text in texts if len(text) <= ncols), texts[-1][:ncols])

    return Bar


def _shown(figures: Figures, between: str) -> list[str]:
    return [f"{name}{between}{value if isinstance(value, str) else f'{value:.3g}'}" for name, value in figures.items()]


def _speed(rate: float, unit: str) -> str:
    return f"{1 / rate:.3g} s/{unit}" if 0 < rate < 1 else f"{rate:.3g} {unit}/s"


def size_of(count: float) -> str:
    """So many bytes, for people."""
    from tqdm import tqdm

    return tqdm.format_sizeof(count, "B")


def clock(seconds: float) -> str:
    """So much time, for people."""
    from tqdm import tqdm

    return tqdm.format_interval(seconds)
