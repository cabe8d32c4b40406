"""Many small operations: one thread for each, several at once.

PyTorch splits an operation over all its threads and waits for the last of them. Where that takes microseconds and
another process keeps a core busy, the wait is a thousand times longer than the work.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations of this block are not split."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def one_thread_each(most: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` without gradients over several items at once, as many as PyTorch has threads, at the most `most`.

    The results do not depend on the number of threads: each item is computed by one.
    """

    def prepare() -> None:
        torch.set_num_threads(1)
        torch.set_grad_enabled(False)  # a thread has its own setting, and this one ends with the pool
        torch.inference_mode(inference).__enter__()

    n_threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    try:
        with ThreadPoolExecutor(min(n_threads, most), initializer=prepare) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(n_threads)  # new threads inherit what was set last, wherever it was
