"""The arguments of `init_model` besides the model and the source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..ghn import GHN
from ..sources import PATTERNS, patterns
from ..utils.checks import FLAG, POSITIVE, SEED, Kind, check_all, check_device, instance, or_none

_KINDS: dict[str, Kind] = {
    "ghn": or_none(instance("a GHN, as load_ghn returns it", GHN)),
    "seed": or_none(SEED),
    **dict.fromkeys(("progress", "cache", "init_rest"), or_none(FLAG)),
    "timeout": or_none(POSITIVE),
    **dict.fromkeys(("only", "skip"), PATTERNS),
}


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `init_model`, which says what they are.

    Raises:
        ValueError: a value that cannot be.
    """

    ghn: GHN | None = None
    input_size: int | Sequence[Any] | None = None
    seed: int | None = None
    device: str | torch.device | None = None
    progress: bool | None = None
    cache: bool | None = None
    init_rest: bool | None = None
    timeout: float | None = None
    example_inputs: Any = None
    only: str | Sequence[str] = ()
    skip: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("only", "skip"):
            object.__setattr__(self, name, patterns(getattr(self, name)))
        check_all(_KINDS, vars(self))
        if self.seed is not None:
            object.__setattr__(self, "seed", int(self.seed))  # NumPy's integers are not JSON
        if self.device is not None:
            check_device(self.device)
