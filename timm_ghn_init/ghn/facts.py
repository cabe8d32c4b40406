"""Everything that belongs to a GHN besides its state dict, as one object."""

import json
import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..graph import KINDS

Depth = float | dict[str, float]
_DEPTH = f"a number from 0 up to 1, or one for each of {', '.join(KINDS)}"
_SCALE = "a number above 0"


@dataclass(frozen=True)
class Facts:
    """The facts of a GHN apart from its values. They are saved, copied and sent with it.

    Attributes:
        config: keyword arguments of `GHN`.
        depth: as `GHN.depth`.
        layer_scale: as `GHN.layer_scale`.
        trained_on: as `GHN.trained_on`.

    Raises:
        ValueError: `depth` or `layer_scale` is not what it may be.

    Example:
        >>> Facts.read(facts.metadata()) == facts
        True
    """

    config: dict[str, Any]
    depth: Depth | None = None
    layer_scale: float | None = None
    trained_on: str | None = None

    def __post_init__(self) -> None:
        depths = self.depth if isinstance(self.depth, dict) else dict.fromkeys(KINDS, self.depth)
        if self.depth is not None and (depths.keys() != set(KINDS) or not all(map(_is_part, depths.values()))):
            raise ValueError(f"depth must be {_DEPTH}, not {reprlib.repr(self.depth)}.")
        if self.layer_scale is not None and not (_is_number(self.layer_scale) and self.layer_scale > 0):
            raise ValueError(f"layer_scale must be {_SCALE}, not {reprlib.repr(self.layer_scale)}.")
        config = dict(self.config)
        if "max_shape" in config:  # JSON has lists only
            config["max_shape"] = tuple(config["max_shape"])
        object.__setattr__(self, "config", config)

    def depth_for(self, kind: str) -> float | None:
        """The depth for a kind of network, a name in `KINDS`."""
        return self.depth[kind] if isinstance(self.depth, dict) else self.depth

    def metadata(self) -> dict[str, str]:
        """As text, for the metadata of a safetensors file and for messages to other processes."""
        numbers = {"depth": self.depth, "layer_scale": self.layer_scale}
        facts = {name: json.dumps(value) for name, value in numbers.items() if value is not None}
        data = {} if self.trained_on is None else {"data": self.trained_on}
        return {"config": json.dumps(self.config, sort_keys=True)} | facts | data

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "Facts":
        """The inverse of `metadata`; other entries are ignored.

        Raises:
            ValueError: an entry is not what `metadata` writes. The message names it.
        """
        facts = cls(json.loads(metadata["config"]), trained_on=metadata.get("data"))
        for name, wanted in {"depth": _DEPTH, "layer_scale": _SCALE}.items():
            if name in metadata:
                try:
                    facts = replace(facts, **{name: json.loads(metadata[name])})
                except (ValueError, TypeError, RecursionError):
                    raise ValueError(f"{name} must be {wanted}, not {reprlib.repr(metadata[name])}.") from None
        return facts


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_part(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1
