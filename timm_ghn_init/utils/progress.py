"""Progress of long work: tqdm in a terminal, elsewhere (SLURM, nohup, CI) a log line each minute.

Lines are messages of level INFO: the command line shows them unless -q is given, and a program shows them as it shows
its log.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any, TypeVar

from .text import clean, logger

T = TypeVar("T")
Figures = Mapping[str, float | str]
_logger = logger(__name__)

EVERY = 60.0  # seconds between two lines
_FRESH = 0.5  # seconds between two updates of figures: reading one may wait for a GPU


class Progress:
    """Shows how far something has come, inside a `with`.

    Args:
        what: the name of the work.
        total: number of steps; None if unknown.
        show: True: tqdm; False: nothing; None: tqdm in a terminal, elsewhere lines.
        done: steps that were done before.
        unit: the name of a step.
        delay: seconds before anything appears, so that short work shows nothing.
        stays: whether the display stays on the screen at the end.
        sizes: whether steps are bytes.

    Example:
        >>> with Progress("Training", 100, unit="update") as progress:
        ...     for _ in range(100):
        ...         progress.step(figures=lambda: {"loss": 0.5})
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
        from tqdm import tqdm

        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._lines = show is None and not is_terminal
        self._look: dict[str, Any] = {"unit": unit, "unit_scale": sizes, "initial": done, "total": total}
        self._what, self.done = clean(what), done
        self._begun = time.monotonic()
        self._last = self._begun if self._lines else -_FRESH  # when figures were shown
        self._bar = tqdm(
            desc=self._what,
            leave=stays,
            dynamic_ncols=True,
            delay=0 if show else delay,
            disable=not (is_terminal if show is None else show),
            **self._look,
        )

    def step(self, n: int = 1, figures: Callable[[], Figures] | None = None) -> None:
        """n more steps are done; `figures` returns numbers and words about them, and is called if they are shown."""
        self.done += n
        now = time.monotonic()
        if self._lines and now - self._last >= EVERY:
            self._last = now
            line = self._bar.format_meter(
                self.done, elapsed=now - self._begun, ncols=0, prefix=self._what, postfix=_text(figures), **self._look
            )
            _logger.info("%s", line)
        elif not self._bar.disable:
            if figures is not None and now - self._last >= _FRESH:
                self._last = now
                self._bar.set_postfix_str(_text(figures), refresh=False)
            self._bar.update(n)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def _text(figures: Callable[[], Figures] | None) -> str:
    """Figures as text: "loss 0.5, epoch 3/10"."""
    values = figures() if figures else {}
    return ", ".join(f"{name} {value if isinstance(value, str) else f'{value:.3g}'}" for name, value in values.items())


def over(items: Iterable[T], what: str, total: int | None = None, **options: Any) -> Iterator[T]:
    """Items, with their progress; options as of `Progress`."""
    count = len(items) if total is None and isinstance(items, Sized) else total
    with Progress(what, count, **options) as progress:
        for item in items:
            yield item
            progress.step()


@contextmanager
def aside() -> Iterator[None]:
    """Inside, lines can be printed to stderr, above the progress display."""
    if (tqdm := sys.modules.get("tqdm")) is None:
        yield
        return
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield


def size_of(count: float) -> str:
    """A number of bytes for people, "9.10MB"."""
    from tqdm import tqdm

    return tqdm.format_sizeof(count, "B")
