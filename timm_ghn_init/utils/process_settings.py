"""Settings of the process, which all of its threads share."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager


class OfTheProcess:
    """Settings while any thread is in a block: the first one sets them, the last puts back what that has found.

    Args:
        settings: each a block in which something is set.
    """

    def __init__(self, *settings: Callable[[], AbstractContextManager[None]]) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._inside = 0  # how many blocks there are
        self._outside = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                with ExitStack() as stack:
                    for setting in self._settings:
                        stack.enter_context(setting())
                    self._outside = stack.pop_all()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._outside.close()
