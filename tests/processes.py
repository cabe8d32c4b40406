"""Processes that need not import PyTorch and timm again: forks of one that has (multiprocessing's forkserver).

What they run is imported by its name. They have the environment in which the first of them was started.
"""

import multiprocessing
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["timm", "timm_ghn_init.initialize", "timm_ghn_init.lab.finetune", "timm_ghn_init.lab.training"]
)
_PATIENCE = 400  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def aside(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work(*arguments)` returns, in a process of its own."""
    with _patience(), ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(on_one_core, work, *arguments).result()


def torchrun(work: Callable[..., Any], *arguments: Any, ranks: int = 2) -> list[Any]:
    """What `work(*arguments)` returns on each rank of a job, started as `torchrun --standalone` starts it."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        start_method="forkserver",
        monitor_interval=0.05,
        max_restarts=0,
    )
    try:
        with _patience():
            said = elastic_launch(config, on_one_core)(work, *arguments)
    finally:
        for number, handler in handlers.items():  # the launcher's would stay
            signal.signal(number, handler)
    return [said[rank] for rank in range(ranks)]


@contextmanager
def _patience() -> Iterator[None]:
    """Processes that have not ended by then are killed, which is an error for who waits for them."""
    timer = threading.Timer(_PATIENCE, lambda: [process.kill() for process in multiprocessing.active_children()])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def on_one_core(work: Callable[..., Any], *arguments: Any) -> Any:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    return work(*arguments)


def cli(*argv: str) -> tuple[int, str, str]:
    """Status, stdout and stderr of `timm-ghn-init`."""
    from timm_ghn_init.cli import main

    with redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as err:
        status = main([*argv])
    return status, out.getvalue(), err.getvalue()
