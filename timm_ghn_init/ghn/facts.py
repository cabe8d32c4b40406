"""Everything that belongs to a GHN besides its state dict, as one object."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..graph import KINDS
from ..utils.checks import PART, POSITIVE, Kind

Depth = float | dict[str, float]


def _is_depth(value: Any) -> bool:
    depths = list(value.values()) if isinstance(value, dict) and value.keys() == set(KINDS) else [value]
    return all(map(PART.valid, depths))


_NUMBERS = {
    "depth": Kind(f"a number from 0 up to 1, or one for each of {', '.join(KINDS)}", _is_depth, json.loads),
    "layer_scale": replace(POSITIVE, parse=json.loads),
}


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
        for name, kind in _NUMBERS.items():
            if getattr(self, name) is not None:
                kind.check(name, getattr(self, name))
        config = dict(self.config)
        if "max_shape" in config:  # JSON has lists only
            config["max_shape"] = tuple(config["max_shape"])
        object.__setattr__(self, "config", config)

    def depth_for(self, kind: str) -> float | None:
        """The depth for a kind of network, a name in `KINDS`."""
        return self.depth[kind] if isinstance(self.depth, dict) else self.depth

    def metadata(self) -> dict[str, str]:
        """As text, for the metadata of a safetensors file and for messages to other processes."""
        facts = {name: json.dumps(value) for name in _NUMBERS if (value := getattr(self, name)) is not None}
        data = {} if self.trained_on is None else {"data": self.trained_on}
        return {"config": json.dumps(self.config, sort_keys=True)} | facts | data

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "Facts":
        """The inverse of `metadata`; other entries are ignored.

        Raises:
            ValueError: an entry is not what `metadata` writes. The message names it.
        """
        facts = cls(json.loads(metadata["config"]), trained_on=metadata.get("data"))
        for name, kind in _NUMBERS.items():
            if name in metadata:
                try:
                    facts = replace(facts, **{name: kind.read(metadata[name])})
                except (ValueError, RecursionError):
                    raise ValueError(f"{name} {kind.problem(metadata[name])}.") from None
        return facts
