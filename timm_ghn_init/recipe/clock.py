"""How long each stage takes."""

import time
from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class Clock:
    """Times stages; on CUDA each one to its end. A stage within another counts for itself alone."""

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        self.device = device

    def __call__(self, stage: str, work: Callable[[], T]) -> T:
        start, before = time.perf_counter(), sum(self.seconds.values())
        result = work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        within = sum(self.seconds.values()) - before
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - start - within
        return result
