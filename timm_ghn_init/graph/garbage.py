"""Python's collector of garbage, held back while much is made that stays."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from ..utils.process_settings import OfTheProcess


@contextmanager
def _held_back() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


# Nearly all that a trace makes lives until its end, so that there is little to be found on the way; and to look through
# all that PyTorch and timm hold, each time, takes longer than most traces.
held_back = OfTheProcess(_held_back)
