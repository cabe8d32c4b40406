"""The state of a run that may be killed."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...utils.files import replace_by_torch
from ...utils.text import logger

_logger = logger(__name__)


class Checkpoint:
    """A file that holds the newest complete state of one trial, whenever the process dies.

    Args:
        path: replaced by an atomic rename.
        key: of the trial; a file of another one is not read.
        seconds: how long to wait at least before the next state is written.
    """

    def __init__(self, path: Path, key: str, seconds: float) -> None:
        self.path, self.key, self.seconds = path, key, seconds
        self.resumed: list[int] = []
        self._written = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The state in the file, on the CPU; None if there is none that can be used, which is logged."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            if state["key"] == self.key:
                return state
            problem: object = "it is of another run"
        except Exception as error:  # whatever torch makes of bytes that are not its own
            problem = error
        _logger.warning("%s cannot be used, the run starts anew: %s", self.path, problem)
        return None

    def offer(self, state: Callable[[], dict[str, Any]]) -> None:
        """Write the state unless the last one is new enough."""
        if time.monotonic() - self._written < self.seconds:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_by_torch(self.path, {**state(), "key": self.key, "resumed": self.resumed})
        self._written = time.monotonic()
