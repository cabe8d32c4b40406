"""Values that wait outside of a model until all of them are there."""

import os
import tempfile
import threading
from io import FileIO
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..utils.text import logger

_logger = logger(__name__)


class _Spilled(NamedTuple):
    """A tensor in the file: where, and how its values lie."""

    offset: int
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype


class Pending:
    """Tensors by name, put in and read by any thread.

    Those on the CPU lie in a temporary file without a name (in TMPDIR), so that they need no memory; where there is no
    room for it, and on other devices, they stay where they are. As a context manager it lets go of all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[str, Tensor | _Spilled] = {}
        self._file: FileIO | None = None
        self._told = False

    def __enter__(self) -> "Pending":
        return self

    def __exit__(self, *error: object) -> None:
        self._held.clear()
        if self._file is not None:
            self._file.close()

    def put(self, name: str, tensor: Tensor) -> None:
        """Take in a tensor, which nobody else writes to from now on, in place of an earlier one of this name."""
        kept: Tensor | _Spilled = tensor
        if tensor.device.type == "cpu":
            try:
                kept = self._spill(tensor)
            except OSError as error:
                if not self._told:
                    _logger.info("Results stay in memory until they are written: %s", error)
                self._told = True
        with self._lock:
            self._held[name] = kept

    def names(self) -> list[str]:
        """The names of the held results."""
        return list(self._held)

    def drop(self, name: str) -> None:
        """Let go of a tensor."""
        with self._lock:
            self._held.pop(name, None)

    def get(self, name: str) -> Tensor:
        """Read a tensor, which is not to be written to."""
        with self._lock:
            kept = self._held[name]
            if isinstance(kept, Tensor):
                return kept
            tensor = torch.empty_strided(kept.shape, kept.stride, dtype=kept.dtype, device="cpu")
            assert self._file is not None
            self._file.seek(kept.offset)
            rest = _bytes_of(tensor)
            while rest:
                count = self._file.readinto(rest)  # at the most 2 GB at once
                if not count:
                    raise OSError(f"{name} cannot be read back from the temporary file.")
                rest = rest[count:]
            return tensor

    def _spill(self, tensor: Tensor) -> _Spilled:
        dense = tensor if _is_dense(tensor) else tensor.contiguous()
        with self._lock:
            if self._file is None:
                self._file = cast(FileIO, tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 (`__exit__` closes it)
            offset = self._file.seek(0, os.SEEK_END)
            rest = _bytes_of(dense)
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError:
                self._file.truncate(offset)
                raise
        return _Spilled(offset, dense.shape, dense.stride(), dense.dtype)


def _is_dense(tensor: Tensor) -> bool:
    """Whether its values fill a stretch of memory, in whatever order."""
    return torch.empty_like(tensor, device="meta").stride() == tensor.stride()


def _bytes_of(dense: Tensor) -> memoryview:
    flat = dense.detach().as_strided((dense.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data
