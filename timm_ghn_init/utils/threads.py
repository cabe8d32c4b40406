"""Many small operations: one thread for each, several at once.

PyTorch splits an operation over all its threads and waits for the last of them. If that takes microseconds and
another process keeps a core busy, the wait is a thousand times longer than the work.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
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

    The results do not depend on the number of threads: each item is computed by one. If no thread can be started,
    the calling thread computes all of them.

    Args:
        work: what to do with an item.
        items: what to work on. They are begun in their order.
        most: how many at once at the most.
        after: called by this thread after each item.

    Returns:
        What `work` returned, in the order of the items.

    Raises:
        Exception: the first one that `work` raises. No item is begun after that.
    """
    n_threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()
    futures: list[tuple[T, Future[R]]] = [(item, Future()) for item in items]
    waiting = iter(futures)
    ready = threading.Semaphore(0)

    def work_in_thread() -> None:
        torch.get_num_threads()  # only from now on this thread has a number of its own
        torch.set_num_threads(1)
        ready.release()
        with torch.inference_mode(inference), torch.no_grad():
            go_on()

    def go_on() -> None:
        for item, future in waiting:  # the next of them goes to whoever asks first
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)
                stop()

    def stop() -> None:
        for _ in waiting:
            pass

    threads: list[threading.Thread] = []
    try:
        for thread in [threading.Thread(target=work_in_thread) for _ in range(min(n_threads, most, len(futures)))]:
            try:
                thread.start()
            except RuntimeError:  # the process has as many as it may have
                break
            threads.append(thread)
            ready.acquire()
        torch.set_num_threads(n_threads)  # else a thread that is started from now on would take over the last number
        if not threads:
            with one_thread(), torch.no_grad():
                go_on()
        results = []
        for _, future in futures:
            results.append(future.result())
            after()
        return results
    finally:
        stop()
        for thread in threads:
            thread.join()
