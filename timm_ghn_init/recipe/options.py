"""What `init_model` was asked for besides the model and the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ghn import GHN


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `init_model`, which says what they are."""

    ghn: GHN | None = None
    input_size: int | Sequence[Any] | None = None
    seed: int | None = None
    device: str | torch.device | None = None
    progress: bool | None = None
    cache: bool | None = None
    init_rest: bool | None = None
    timeout: float | None = None
    example_inputs: Any = None
