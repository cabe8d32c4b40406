"""The report on an initialisation: predicted parameters, and reasons for the others."""

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .utils.files import replacing
from .utils.notebook import folded
from .utils.text import clean


@dataclass(frozen=True, repr=False)
class InitReport:
    """The account of one initialisation. `print` shows it, a notebook with a table of all parameters.

    Attributes:
        model: architecture, or class, of the model.
        source: the source that was really used, with its options; "ghn" is resolved to what it stood for.
        device: where the parameters were decoded.
        nodes, edges: size of the primitive graph; 0 where none was needed ("rand", "orth").
        predicted: name -> role ("weight", "norm", "bias", "pos_enc") of each parameter with predicted values, or with
            values drawn by "rand" or "orth".
        skipped: name -> reason for each parameter that was left as it was.
        sizes: name -> number of values, of all parameters.
        layer: the first layer that was post-processed, counted from 1; None without post-processing.
        postprocessed: names of the weights that were post-processed.
        seed: of the post-processing's noise, or of what was drawn; None where nothing is random.
        seconds: duration of each stage: "trace", "embed", "decode", "write", "postprocess", "cache", "hub"; "draw"; of
            sharded models also "share" (the GHN, from rank to rank) and "own" (the model's own initialisation).
        cached: whether the predicted parameters were read from the cache.
        key: of the predicted parameters, see `weights_key`; "" where neither the cache nor the Hub was asked for.
        hub: the Hub repository in which they were looked for; "" where that was not asked for.
        downloaded: whether they were there.
        own: names of the parameters and buffers that were set by the model's own initialisation, for a model that came
            from the meta device.
        unset: names of those that nothing has set.
        parts: name -> the part of a composed source, as "mimetic" of "ghn2-orth+mimetic", which its values are from;
            empty for other sources.
        notes: sentences on what else the user should know.

    Example:
        >>> report = init_model(timm.create_model("test_resnet", num_classes=5), "ghn2-fashion-orth")
        >>> report.source, report.skipped["fc.weight"]
        ('ghn2-fashion-orth', 'classifier of 5 classes, the GHN predicts 10')
    """

    model: str
    source: str
    device: str
    nodes: int
    edges: int
    predicted: dict[str, str]
    skipped: dict[str, str]
    sizes: dict[str, int]
    layer: int | None = None
    postprocessed: tuple[str, ...] = ()
    seed: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    cached: bool = False
    key: str = ""
    hub: str = ""
    downloaded: bool = False
    own: tuple[str, ...] = ()
    unset: tuple[str, ...] = ()
    parts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """Share of the model's parameter values that were predicted, 0 to 1."""
        return sum(self.sizes[name] for name in self.predicted) / max(1, sum(self.sizes.values()))

    def renamed(self, names: Mapping[str, str | None]) -> "InitReport":
        """This report with other names for its parameters and buffers, where `names` has one.

        It is without those whose new name is None.
        """

        def new(old: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for n, value in old.items() if (name := names.get(n, n)) is not None}

        def of_each(old: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(new(dict.fromkeys(old)))

        return replace(
            self,
            predicted=new(self.predicted),
            skipped=new(self.skipped),
            sizes=new(self.sizes),
            postprocessed=of_each(self.postprocessed),
            own=of_each(self.own),
            unset=of_each(self.unset),
            parts=new(self.parts),
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it for JSON, `coverage` included."""
        return {**asdict(self), "coverage": self.coverage}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write `to_dict` to a JSON file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        with replacing(Path(path)) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        return (
            f"InitReport({self.model!r}, {self.source!r}, {len(self.predicted)} of {len(self.sizes)} parameters, "
            f"{percentage(self.coverage)} of the values)"
        )

    def _repr_html_(self) -> str:
        done = set(self.postprocessed)
        rows = (
            (
                name,
                f"{size:,}",
                self.predicted.get(name, ""),
                "yes" if name in done else "",
                self.skipped.get(name, ""),
            )
            for name, size in self.sizes.items()
        )
        header = ("parameter", "values", "predicted as", "post-processed", "why not predicted")
        return folded(str(self), f"{len(self.sizes)} parameters", header, rows)

    def __str__(self) -> str:
        predicted, total = len(self.predicted), len(self.sizes)
        verb, nodes = ("predicted", f", {self.nodes} nodes") if self.nodes else ("initialised", "")
        lines = [
            f"{self.model}: {predicted} of {total} parameters ({percentage(self.coverage)} of the values) {verb} by "
            f"{self.source} on {self.device}{', cached' * self.cached}{', from the Hub' * self.downloaded}{nodes}, "
            f"{sum(self.seconds.values()):.2f} s"
        ]
        if self.layer is not None:
            done = "post-processed" if self.nodes else "orthogonal"
            lines.append(f"  {done}: {len(self.postprocessed)} layers from layer {self.layer} on, seed {self.seed}")
        for part, count in Counter(self.parts.values()).items():
            lines.append(f"  from {part}: {count} parameters")
        for names, what in ((self.own, "by the model's own initialisation"), (self.unset, "set by nothing")):
            if names:
                lines.append(f"  {what}: {len(names)} parameters and buffers ({names[0]}{' ...' * (len(names) > 1)})")
        left = "not predicted" if self.own else "left as they were"
        for reason, count in Counter(self.skipped.values()).most_common():
            example = next(name for name, r in self.skipped.items() if r == reason)
            lines.append(f"  {left}: {count} x {reason} ({example}{' ...' if count > 1 else ''})")
        lines += [f"  {note}" for note in self.notes]
        return "\n".join(map(clean, lines))  # names come from models


def percentage(share: float) -> str:
    """A share of 0 to 1; what is not all of it is never rounded up to that."""
    return f"{math.floor(share * 10_000 + 1e-9) / 100:.2f}%"
