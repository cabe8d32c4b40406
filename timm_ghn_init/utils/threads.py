"""Many small operations: one thread for each, several at once.

PyTorch splits an operation over all its threads and waits for the last of them. If that takes microseconds and
another process keeps a core busy, the wait is a thousand times longer than the work.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def one_thread() -> Iterator[None]:
    """Operations of this block are not split. Other threads that compute already keep their setting."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def one_thread_each(
    work: Callable[[T], R], items: Iterable[T], most: int, after: Callable[[], object] = lambda: None
) -> list[R]:
    """Do `work` without gradients on several items at once, on as many as PyTorch has threads.

    The results do not depend on the number of threads: each item is computed by one. If PyTorch has only one, or if a
    thread cannot be started, the calling thread computes all of them.

    Args:
        work: what to do with an item. It may be done twice with the same one.
        items: what to work on. They are begun in their order.
        most: how many at once at the most.
        after: called by this thread after each item, where there are others.

    Returns:
        What `work` returned, in the order of the items.

    Raises:
        Exception: that of the first item for which `work` raises. Those that have not begun are left out.
    """
    n_threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    items = list(items)

    def begin() -> None:
        torch.get_num_threads()  # only from now on this thread has a number of its own
        torch.set_num_threads(1)

    def alone(item: T) -> R:
        with torch.inference_mode(inference), torch.no_grad():
            return work(item)

    if min(n_threads, most) == 1:
        # A process that is forked after another thread has used MKL may wait forever in MKL's allocator.
        with one_thread():
            return [alone(item) for item in items]
    pool = ThreadPoolExecutor(min(n_threads, most), initializer=begin)
    try:
        try:
            futures = [pool.submit(alone, item) for item in items]
        except RuntimeError:  # the process has as many threads as it may have
            pool.shutdown(cancel_futures=True)
            with one_thread():
                return [alone(item) for item in items]
        results = []
        for future in futures:
            results.append(future.result())
            after()
        return results
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)  # else a thread that is started from now on would take over the last number
