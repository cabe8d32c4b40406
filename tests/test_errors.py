"""However a command ends: one line on stderr and the documented status, and a traceback for bugs alone."""

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from timm_ghn_init.checkpoints.formats import CheckpointError
from timm_ghn_init.cli import _parser, cache, main
from timm_ghn_init.cli.errors import exit_status
from timm_ghn_init.cli.results import write_out
from timm_ghn_init.utils import checks


def end(work: Callable[[], Any], go_on: str = "") -> int:
    return exit_status(work, lambda: go_on)


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


# -- errors ------------------------------------------------------------------------------------------------------------


class TheirOwn(CheckpointError):
    """Of a package built upon this one."""


TOLD = {
    "a mistake": (checks.InputError("lr must be above 0, not -1."), "lr must be above 0, not -1."),
    "of this package": (CheckpointError("a.pt: damaged"), "a.pt: damaged"),
    "of one built upon it": (TheirOwn("b.pt: damaged"), "b.pt: damaged"),
    "disk": (OSError(errno.ENOSPC, "No space left on device", "x.svg"), "x.svg: No space left on device"),
    "two files": (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), "a -> b: Invalid link"),
    "bytes": (PermissionError(errno.EACCES, "Permission denied", b"caf\xe9"), "caf?: Permission denied"),
    "network": (ConnectionResetError("the peer\nhung up\x1b[31m"), "the peer hung up?[31m"),
    "no word": (TimeoutError(), "TimeoutError"),
    "library": (
        ModuleNotFoundError("No module named 'numpy'", name="numpy"),
        "`timm-ghn-init doctor` shows which package.",
    ),
    "memory": (MemoryError(), "not enough memory: MemoryError"),
}


@pytest.mark.parametrize("name", TOLD)
def test_told_in_one_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, words = TOLD[name]
    assert end(raising(error)) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("timm-ghn-init: error: ") and stderr.endswith(f"{words}\n")
    assert stderr[:-1].isprintable()


def test_more_than_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    """PyTorch says so in several ways."""
    for work in (lambda: torch.empty(2**60, dtype=torch.uint8), lambda: torch.empty(2**40, 2**40, device="meta")):
        assert end(work) == 2
        assert "not enough memory" in capsys.readouterr().err


def test_a_bug_says_that_it_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    ours = ImportError("cannot import name 'x'", name="timm_ghn_init.y")
    for error in (KeyError("x"), RuntimeError("x"), ValueError("x"), AssertionError(), ours):
        with pytest.raises(type(error)):
            end(raising(error))
        said = capsys.readouterr().err
        assert "Please report it" in said and "timm-ghn-init doctor" in said


MISTAKES = {  # no command says itself which of the errors below it are mistakes
    "eval-ghn rand": "rand is an initialisation without a GHN",
    "train-ghn --data digits --begin-from rand --hid 8 -o FOLDER/run": "rand is an initialisation without a GHN",
    "train-ghn --data digits --begin-from nowhere --hid 8 -o FOLDER/run": "Unknown source 'nowhere'",
    "predict test_resnet --source file:~nobody-of-that-name/x.pt -o FOLDER/x.safetensors": "~nobody-of-that-name",
    "finetune x --search grid --grid opt=x -o FOLDER/x.jsonl": "opt must be sgd or adamw, not 'x'",
    "finetune x --search grid --grid opt=[1] -o FOLDER/x.jsonl": "opt must be sgd or adamw, not [1]",
}


@pytest.mark.parametrize("command", MISTAKES)
def test_mistakes_that_are_found_deep_inside(command: str, tmp_path: Path, capsys: Any) -> None:
    assert main(command.replace("FOLDER", str(tmp_path)).split()) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("timm-ghn-init: error: ") and MISTAKES[command] in error
    assert not list(tmp_path.iterdir())


# -- interrupts --------------------------------------------------------------------------------------------------------


def test_interrupted(capsys: pytest.CaptureFixture[str]) -> None:
    assert end(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "timm-ghn-init: stopped\n"
    assert end(raising(KeyboardInterrupt()), "run it again") == 130
    assert capsys.readouterr().err == "timm-ghn-init: stopped; run it again\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_terminated(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """What is being written is cleared up, as with Ctrl-C."""
    cleared = []

    def work() -> int:
        try:
            os.kill(os.getpid(), number)
            raise AssertionError("it goes on")
        finally:
            cleared.append(True)

    before = signal.getsignal(number)
    assert end(work) == 128 + number
    assert cleared
    assert capsys.readouterr().err == f"timm-ghn-init: stopped by {number.name}\n"
    assert signal.getsignal(number) is before


def test_signals_that_somebody_else_takes_care_of() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    try:
        assert end(lambda: os.kill(os.getpid(), signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_commands_say_how_to_continue() -> None:
    parser = _parser()[0]
    for argv, words in (
        ("bake --models x --out y", "run the same command again"),
        ("finetune x -o y", "run the same command again"),
        ("tune x -o y", "run the same command again"),
        ("fetch x", "run the same command again"),
        ("train-ghn -o y", "run the same command with --resume"),
        ("predict x -o y", ""),
    ):
        assert parser.parse_args(argv.split()).resume_hint.startswith(words)


# -- streams -----------------------------------------------------------------------------------------------------------


class Broken(io.RawIOBase):
    """A file that cannot be written until it is mended."""

    def __init__(self, number: int) -> None:
        self.number = number

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.number:
            raise OSError(self.number, os.strerror(self.number))
        return len(data)


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have stdout break."""
    files = []

    def broken(number: int, **options: bool) -> None:
        files.append(Broken(number))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(files[-1]), **options))

    yield broken
    for file in files:  # or the collector cannot get rid of them
        file.number = 0


@pytest.mark.parametrize("size", [10, 100_000])  # in one buffer, and more
def test_a_full_disk_behind_stdout(size: int, broken: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    broken(errno.ENOSPC)
    assert end(lambda: write_out("x" * size) or 0) == 2
    assert (
        capsys.readouterr().err == "timm-ghn-init: error: Standard output cannot be written: No space left on device.\n"
    )


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("argv", [["list"], ["--help"], ["predict", "--help"], ["--version"]])
def test_a_reader_that_has_seen_enough(
    argv: list[str], unbuffered: bool, broken: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    broken(errno.EPIPE, write_through=unbuffered)
    try:
        assert main(argv) == 0
    except SystemExit as end:  # by argparse
        assert end.code == 0
    assert capsys.readouterr().err == ""


def test_no_stdout(monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["list"]) == 0


def test_a_terminal_of_few_letters(monkeypatch: Any) -> None:
    """What it cannot show is escaped."""
    buffer = io.BytesIO()
    stdout = io.TextIOWrapper(buffer, encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert end(lambda: write_out("50.0 \xb1 1.2, caf\udce9, \u20ac") or 0) == 0
    assert buffer.getvalue() == b"50.0 \\xb1 1.2, caf\\udce9, \\u20ac\n"


# -- what comes before the work ----------------------------------------------------------------------------------------


def test_what_needs_no_torch_does_not_import_it() -> None:
    """Nor timm; nor do mistakes that can be told without them."""
    code = """
import sys, io, contextlib
from timm_ghn_init.cli import main
for line in (
    "--help", "--version", "list", "prdict x", "predict --sorce x", "predict x --num-classes ten -o y",
    "finetune --lr nan x -o y", "train-ghn --hid 5 -o y", "cache info", "completion", "bake --hub a/b --models x",
    "predict x -o y/z.pth",
):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = main(line.split())
        except SystemExit as end:
            status = end.code
    assert status in (0, 2) and "Traceback" not in said.getvalue(), (line, status, said.getvalue())
    heavy = {"torch", "timm", "torchvision", "matplotlib", "huggingface_hub"} & set(sys.modules)
    assert not heavy, (line, heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_dates_that_no_calendar_has(monkeypatch: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from timm_ghn_init.weights.cache import Entry

    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    assert cache._cells(cache._row(Entry(path, 0, 2.0**60)))[2] == "(no date)"
