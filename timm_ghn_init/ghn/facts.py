"""Everything that belongs to a GHN besides its state dict, as one object."""

import json
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Facts:
    """What a GHN is, apart from its values. Whoever saves, copies or sends a GHN saves, copies or sends this with it.

    Attributes:
        config: keyword arguments of `GHN`.
        depth: as `GHN.depth`.
        trained_on: as `GHN.trained_on`.

    Raises:
        ValueError: `depth` is not a number from 0 up to 1.

    Example:
        >>> Facts.read(facts.metadata()) == facts
        True
    """

    config: dict[str, Any]
    depth: float | None = None
    trained_on: str | None = None

    def __post_init__(self) -> None:
        if self.depth is not None and not 0 <= self.depth < 1:
            raise ValueError(f"depth must be a number from 0 up to 1, not {self.depth!r}.")
        config = dict(self.config)
        if "max_shape" in config:  # JSON has lists only
            config["max_shape"] = tuple(config["max_shape"])
        object.__setattr__(self, "config", config)

    def metadata(self) -> dict[str, str]:
        """As text, for the metadata of a safetensors file and for messages to other processes."""
        optional = {"depth": self.depth, "data": self.trained_on}
        config = {"config": json.dumps(self.config, sort_keys=True)}
        return config | {name: str(value) for name, value in optional.items() if value is not None}

    @classmethod
    def read(cls, metadata: Mapping[str, str]) -> "Facts":
        """The inverse of `metadata`; other entries are ignored.

        Raises:
            ValueError: an entry is not what `metadata` writes. The message names it.
        """
        facts = cls(json.loads(metadata["config"]), trained_on=metadata.get("data"))
        text = metadata.get("depth")
        if text is None:
            return facts
        try:
            return replace(facts, depth=float(text))
        except ValueError:
            raise ValueError(f"depth must be a number from 0 up to 1, not {reprlib.repr(text)}.") from None
