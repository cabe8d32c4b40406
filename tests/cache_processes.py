"""What the processes of the cache tests do: they initialise the same model with the cache at the same time."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock  # noqa: F401 (imported late otherwise, by each process)
import safetensors.torch  # noqa: F401
import timm

from timm_ghn_init import init_model, utils
from timm_ghn_init.weights import cache
from timm_ghn_init.weights import files as weights

fork = multiprocessing.get_context("fork")


def initialise(path: Path, answers: Any, ready: Callable[[], object]) -> None:
    model = timm.create_model("test_convnext")
    ready()
    report = init_model(model, f"file:{path}-orth", cache=True)
    predicted = {name: model.get_parameter(name) for name in report.predicted}
    answers.put({"cached": report.cached, "digest": weights.digest(predicted)})


def together(path: Path, count: int) -> list[Any]:
    answers, start = fork.Queue(), fork.Barrier(count)
    processes = [fork.Process(target=initialise, args=(path, answers, start.wait)) for _ in range(count)]
    for process in processes:
        process.start()
    return collect(processes, answers)


def killed(path: Path) -> list[Any]:
    """One is killed while it writes and two others wait for it."""
    answers, arrived = fork.Queue(), fork.Event()
    first = fork.Process(target=initialise, args=(path, answers, lambda: stop_while_writing(arrived.set)))
    first.start()
    assert arrived.wait(60)
    waiting = fork.Semaphore(0)
    others = [fork.Process(target=initialise, args=(path, answers, lambda: announce(waiting))) for _ in range(2)]
    for process in others:
        process.start()
    assert all(waiting.acquire(timeout=60) for _ in others)
    os.kill(first.pid, signal.SIGKILL)
    first.join()
    assert first.exitcode == -signal.SIGKILL
    return collect(others, answers)


def stop_while_writing(tell: Callable[[], object]) -> None:
    """Let this process tell that it has written half of a file, and stay there."""

    def write_half(path: Path, *_: Any) -> None:
        path.with_name(".tmpabc").write_bytes(b"half")
        tell()
        time.sleep(600)

    cache.save = write_half  # type: ignore[assignment]


def announce(waiting: Any) -> None:
    """Let this process tell when it waits for the lock."""
    utils.files.QUIET = 0.1
    utils.files._logger.warning = lambda *_: waiting.release()


def collect(processes: list[Any], answers: Any) -> list[Any]:
    found = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return found


def scenarios(path: Path, folder: Path) -> dict[str, list[Any]]:
    """What each scenario's processes answered; its home is a subfolder. To be called where there is no other thread."""
    runs = {"together": lambda: together(path, 3), "killed": lambda: killed(path)}
    said = {}
    for name, run in runs.items():
        os.environ["TIMM_GHN_HOME"] = str(folder / name)
        said[name] = run()
    return said
