"""Progress: a bar in a terminal, and elsewhere a line a minute."""

import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from timm_ghn_init.cli.messages import logging_to_stderr
from timm_ghn_init.utils import progress
from timm_ghn_init.utils.progress import Progress, over

ROOT = Path(progress.__file__).parents[1]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that pass when they are told to."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    yield now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, "timm_ghn_init.utils.progress")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "timm_ghn_init.utils.progress"]


def test_a_line_a_minute(clock: list[float], lines: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("Training", 1000, done=100) as shown:
        for i in range(300):
            clock[0] += 0.5
            shown.step(1, lambda i=i: {"loss": 2 - i / 1000, "accuracy": 0.25, "lr": 1e-3})  # type: ignore[misc]
    assert lines() == [
        "Training:  22% 220/1000 [01:00<06:30,  2.00step/s, loss 1.88, accuracy 0.25, lr 0.001]",
        "Training:  34% 340/1000 [02:00<05:30,  2.00step/s, loss 1.76, accuracy 0.25, lr 0.001]",
    ]
    assert capsys.readouterr().err == ""


def test_steps_that_take_long_have_a_line_each(clock: list[float], lines: Any) -> None:
    for _ in over(range(2), "signals", unit="init"):
        clock[0] += 90
    assert lines() == [
        "signals:  50% 1/2 [01:30<01:30, 90.00s/init]",
        "signals: 100% 2/2 [03:00<00:00, 90.00s/init]",
    ]


def test_bytes_and_an_unknown_end(clock: list[float], lines: Any) -> None:
    for total in (10_000_000, None):
        with Progress("ghn2.pt\x1b[31m", total, unit="B", sizes=True) as shown:
            clock[0] += 61
            shown.step(5_000_000)
    assert lines() == [
        "ghn2.pt?[31m:  50% 5.00M/10.0M [01:01<01:01, 82.0kB/s]",
        "ghn2.pt?[31m: 5.00MB [01:01, 82.0kB/s]",
    ]


def test_what_is_short_or_unwanted_says_nothing(
    clock: list[float], lines: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    for show, seconds in ((None, 1), (False, 100)):
        for _ in over(range(3), "x", show=show):
            clock[0] += seconds
    assert lines() == []
    assert capsys.readouterr().err == ""


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, lines: Any) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("Training", 10, delay=0, stays=True) as shown:
        for _ in range(10):
            shown.step(1, lambda: {"loss": 0.5})
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert "Training:   0%|" in text and "10/10" in text and "loss 0.5" in text
    assert lines() == []


def test_messages_stand_above_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with logging_to_stderr(0), Progress("Training", 10, delay=0) as shown:
        shown.step()
        logging.getLogger("timm_ghn_init.x").warning("mind")
        shown.step()
    text = sys.stderr.getvalue()  # type: ignore[attr-defined]
    assert re.search(r"\r +\rwarning: mind\n\r?Training", text), repr(text)


def test_there_is_one_place_for_it() -> None:
    using = [p.name for p in ROOT.rglob("*.py") if re.search(r"import .*tqdm", p.read_text())]
    assert using == ["progress.py"]
