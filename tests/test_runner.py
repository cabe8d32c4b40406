"""`python -m timm_ghn_init SCRIPT`: a script finds what `python SCRIPT` gives it, and the sources."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from train_script import fingerprint

from timm_ghn_init.cli import program
from timm_ghn_init.integration import runner

TRAIN = Path(__file__).with_name("train_script.py")
RUNNER = (sys.executable, "-m", "timm_ghn_init")

# -- like python -------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "surroundings": """
        '''Its docstring.'''
        import os, sys
        names = {k: v for k, v in globals().items() if k.startswith("__") and k != "__annotations__"}
        names["__loader__"] = type(__loader__), __loader__.name, __loader__.path
        print(sys.argv, sys.path, os.getcwd(), sys.modules["__main__"].__dict__ is globals(), names)
        import neighbour
    """,
    "status": "import sys; sys.exit(3)",
    "message": "import sys; sys.exit('the end')",
    "no status": "import sys; sys.exit()",
    "error": """
        def f(x):
            return 1 / x

        try:
            f(0)
        except ZeroDivisionError as error:
            raise ValueError("out of range") from error
    """,
    "syntax error": "x = (1,\ny = 2\n",
    "error in an import": "import broken",
    "interrupted": "raise KeyboardInterrupt",
    "own hook": """
        import sys
        def hook(kind, value, trace):
            print(kind, value, trace.tb_frame.f_code.co_name, trace.tb_lineno, value.__traceback__ is trace)
        sys.excepthook = hook
        raise OSError("gone")
    """,
    "at exit": """
        import atexit, pickle, sys, threading, time
        class Thing: pass
        def late(): print("late", type(pickle.loads(pickle.dumps(Thing()))) is Thing, sys.argv)
        atexit.register(late)
        threading.Thread(target=lambda: (time.sleep(0.1), late())).start()
    """,
    "encoded": "# -*- coding: latin-1 -*-\nprint(ascii('\N{LATIN SMALL LETTER E WITH ACUTE}'))",
    "future": "from __future__ import annotations\ndef f(x: nothing): pass\nprint(f.__annotations__)",
    "no future": "def f(x: int): pass\nprint(f.__annotations__)",
    "not there": None,
}
AS_MODULE = ("surroundings", "status", "error", "error in an import", "interrupted", "at exit", "not there")
CASES = [(name, "script") for name in SCRIPTS] + [(name, "module") for name in AS_MODULE]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`project/` with all scripts, and `work/` to start them from."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "project" / "package").mkdir(parents=True)
    (folder / "work").mkdir()
    for name, text in {
        **SCRIPTS,
        "neighbour": "print('neighbour')",
        "broken": "import no_such_module_anywhere",
    }.items():
        if text is not None:
            encoding = "latin-1" if "latin-1" in text else "utf-8"
            for place in ("project", "project/package"):
                path = folder / place / f"{name.replace(' ', '_')}.py"
                path.write_text(textwrap.dedent(text).lstrip("\n"), encoding=encoding)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python where `timm_ghn_init` is this package without the registration, and so without torch and timm."""
    path = tmp_path_factory.mktemp("path")
    (path / "timm_ghn_init").mkdir()
    (path / "timm_ghn_init" / "__init__.py").write_text(
        f"__path__, __version__ = [{str(Path(runner.__file__).parents[1])!r}], ''"
    )

    def run(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(path)}
        return subprocess.run(
            [sys.executable, *argv], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
        )

    return run


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_as_with_python(run: Callable, folder: Path, name: str, kind: str) -> None:
    """Status, output and tracebacks, but for the frames that runpy itself puts first for `-m`."""
    stem, arguments = name.replace(" ", "_"), ("a", "--b=c d", "-m")
    if kind == "module":
        argv, cwd = ("-m", f"package.{stem}", *arguments), folder / "project"
    else:
        argv, cwd = (f"../project/./{stem}.py", *arguments), folder / "work"
    ours, python = run("-m", "timm_ghn_init", *argv, cwd=cwd), run(*argv, cwd=cwd)
    assert ours.returncode == python.returncode
    assert without_addresses(ours.stdout) == without_addresses(python.stdout)
    if (name, kind) == ("not there", "script"):
        assert f"cannot open '{folder}/work/../project/./not_there.py': No such file" in ours.stderr
    else:
        assert without_runpy(ours.stderr) == without_runpy(python.stderr)


def without_runpy(text: str) -> str:
    return re.sub(r'  File "[^"]*runpy[^"]*", .*\n(    .*\n)*', "", text)


def without_addresses(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_processes_that_a_script_starts(run: Callable, folder: Path, method: str) -> None:
    """They import the package and then, as with python, the script; its classes can be pickled either way."""
    (folder / "project" / "parent.py").write_text(
        textwrap.dedent(f"""
        import multiprocessing, sys

        class Question:
            def __reduce__(self): return Question, ()

        def child(question, answers):
            answers.put((type(question) is Question, "timm_ghn_init" in sys.modules, sys.argv, Question()))

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            answers = context.Queue()
            process = context.Process(target=child, args=(Question(), answers))
            process.start()
            *facts, question = answers.get(timeout=30)
            process.join()
            print(facts, type(question) is Question, process.exitcode)
        """)
    )
    done = run("-m", "timm_ghn_init", "../project/parent.py", "x", cwd=folder / "work")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "[True, True, ['../project/parent.py', 'x']] True 0\n"


# -- which of the two --------------------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple]:
    """What `main` chose to run, in a folder with a few files."""
    chosen: list[tuple] = []
    monkeypatch.setattr(program, "run_command", lambda argv: chosen.append(("command", *argv)) or 0)
    monkeypatch.setattr(runner, "run_script", lambda path, rest: chosen.append(("script", path, *rest)) or 0)
    monkeypatch.setattr(runner, "run_module", lambda name, rest: chosen.append(("module", name, *rest)) or 0)
    for name in ("train", "predict", "train.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    return chosen


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        ([], ("command",)),
        (["--help"], ("command", "--help")),
        (["predict", "resnet18", "-m"], ("command", "predict", "resnet18", "-m")),
        (["./predict", "-x"], ("script", "./predict", "-x")),
        (["train"], ("script", "train")),
        (["train.txt", "list"], ("script", "train.txt", "list")),
        (["not_there.py", "--help"], ("script", "not_there.py", "--help")),
        (["-m", "list", "-m", "x"], ("module", "list", "-m", "x")),
    ],
)
def test_commands_and_scripts(ran: list[tuple], argv: list[str], expected: tuple) -> None:
    assert program.main(argv) == 0
    assert ran == [expected]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ("'trian'", "predict", "inspect", ".py", "-m MODULE")),
        (["folder"], ("'folder'", "predict", ".py")),
        (["pre\ndict\x1b[31m"], ("'pre\\ndict\\x1b[31m'",)),
        (["-m"], ("-m", "module")),
    ],
)
def test_neither(ran: list[tuple], capsys: pytest.CaptureFixture[str], argv: list[str], words: tuple) -> None:
    assert program.main(argv) == 2
    assert ran == []
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    assert stderr.startswith("timm-ghn-init: error: ")
    assert stderr[:-1].isprintable()
    assert all(word in stderr for word in words)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def train(ghn_file: Path) -> Callable[..., list[dict]]:
    """Run a command that runs the training script; what its processes print."""

    def train(*command: object, cwd: Path | None = None) -> list[dict]:
        done = subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env={**os.environ, "TIMM_GHN_DEFAULT": f"file:{ghn_file}", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return train


@pytest.fixture
def expected(ghn_file: Path) -> str:
    """The parameters that the training script should start from."""
    torch.manual_seed(0)
    return fingerprint(timm.create_model("test_resnet", pretrained=f"file:{ghn_file}-orth"))


def test_training_as_a_module_on_two_ranks(train: Callable, expected: str) -> None:
    """Under torchrun, as `-m`. All ranks predict the same bits, though each has a seed of its own."""
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    argv = ("--model", "test_resnet.ghn-orth", "--pretrained")
    one, two = train(*torchrun, "-m", "timm_ghn_init", "-m", TRAIN.stem, *argv, cwd=TRAIN.parent)
    assert one["argv"] == two["argv"] == [str(TRAIN), *argv]
    assert one["source"].endswith("-orth")
    assert one["start"] == two["start"] == expected
    assert one["end"] == two["end"] != expected
    assert one["losses"] != two["losses"]
