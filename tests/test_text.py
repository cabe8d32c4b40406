"""Text from outside is shown on one line, steers no terminal, and holds nobody's password."""

import logging
from pathlib import Path

import pytest

from timm_ghn_init.checkpoints.download import DownloadError
from timm_ghn_init.checkpoints.load import CheckpointError
from timm_ghn_init.cli.messages import UserError
from timm_ghn_init.graph import TraceError
from timm_ghn_init.lab.images import DatasetError
from timm_ghn_init.lab.training.loop import TrainingError
from timm_ghn_init.recipe.assign import PredictionError
from timm_ghn_init.report import InitReport
from timm_ghn_init.utils.checks import InputError
from timm_ghn_init.utils.text import clean, clean_logs_of, logger
from timm_ghn_init.weights.files import WeightsError
from timm_ghn_init.weights.hub import HubError

ERRORS = [
    *(CheckpointError, DatasetError, DownloadError, HubError, InputError, PredictionError, TraceError, TrainingError),
    *(UserError, WeightsError),
]
EVIL = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e\udcff\r\nforged"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, é 漢", "plain, é 漢"),
        ("a\x1b[31mb\x07\x9b", "a?[31mb??"),
        ("a\nb\tc\r\u2028d\u00a0e", "a b c  d e"),
        ("a\u202eb\u200bc\udcffd", "a?b?c?d"),
        ("http://me:pw@host/x and https://me@host", "http://***@host/x and https://***@host"),
        ("http://me:p/w@d@host/x", "http://***@host/x"),
        ("me@home, org/name@main, https://host/x", "me@home, org/name@main, https://host/x"),
        ("hf_abcdefghijk.", "hf_***."),
        (OSError(2, "No", "x\x1b"), "[Errno 2] No: 'x\\x1b'"),
        (Path("a\x1bb"), "a?b"),
    ],
)
def test_clean(text: object, shown: str) -> None:
    assert clean(text) == shown


def test_long_text_is_cut() -> None:
    assert clean("a" * 50, 10) == "aaaaaaaaaa..."
    assert clean("a" * 10, 10) == "a" * 10


def test_messages_of_our_loggers(caplog: pytest.LogCaptureFixture) -> None:
    log = logger("timm_ghn_init.somewhere")
    assert logger("timm_ghn_init.somewhere") is log and len(log.filters) == 1
    caplog.set_level(logging.INFO, "timm_ghn_init")
    log.info("%s %s %d %s", EVIL, Path(EVIL), 3, ValueError(EVIL))
    log.warning("no arguments")
    log.warning("%(name)s", {"name": "a mapping"})
    first, *others = (record.getMessage() for record in caplog.records)
    assert first.isprintable() and first.count("forged") == 3
    assert others == ["no arguments", "a mapping"]


def test_messages_of_a_library(caplog: pytest.LogCaptureFixture) -> None:
    """huggingface_hub logs what servers say, and addresses as they are."""
    theirs = logging.getLogger("some_library.http")
    for _ in range(2):
        clean_logs_of("some_library")
    theirs.warning(f"{EVIL} %s", "http://me:pw@host/")
    logging.getLogger("some_library_of_others").warning("\x1b")
    first, other = (record.getMessage() for record in caplog.records)
    assert first.isprintable() and first.endswith("forged http://***@host/")
    assert other == "\x1b" and len(theirs.filters) == 1


@pytest.mark.parametrize("kind", ERRORS)
def test_errors(kind: type[Exception]) -> None:
    assert str(kind(f"{EVIL} http://me:pw@host/")).isprintable()
    assert "pw" not in str(kind("http://me:pw@host/"))


def test_reports() -> None:
    report = InitReport(EVIL, EVIL, "cpu", 1, 1, {}, {EVIL: EVIL}, {EVIL: 1}, own=(EVIL,), unset=(EVIL,))
    assert all(line.isprintable() for line in str(report).split("\n"))
    assert str(report).count("forged") >= 4
