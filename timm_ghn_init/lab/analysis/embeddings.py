"""The embedding of an architecture among others (arXiv 2207.10049, Figure 5).

A graph's embedding is the mean of its nodes' embeddings after message passing, as in Knyazev et al. (2021).
"""

import csv
import fnmatch
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ...ghn import GHN
from ...graph import Graph, trace
from ...utils.checks import InputError, check_architecture
from ...utils.progress import over
from ...utils.text import logger

_logger = logger(__name__)


class Architecture(NamedTuple):
    """An architecture to embed.

    Attributes:
        name: of a timm architecture, or "test 7", the network of that number in the split (as `eval-ghn` names it).
        group: its timm module, or the kind of the sampled network.
        trace: gives its graph in a dialect.
    """

    name: str
    group: str
    trace: Callable[[Any], Graph]


def timm_architecture(name: str) -> Architecture:
    """A timm architecture.

    Raises:
        ValueError: there is none of that name.
    """
    from timm.models._registry import _model_to_module

    check_architecture(name)
    base = name.partition(".")[0]
    return Architecture(name, _model_to_module[base], lambda dialect: _trace_timm(base, dialect))


def _trace_timm(name: str, dialect: Any) -> Graph:
    """The graph of a timm architecture, built on the meta device if its code allows."""
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(name)
        return trace(model, dialect=dialect)
    except Exception:  # of any type: raised by a model's own code, which needs values
        _logger.debug("%s is built with real values.", name, exc_info=True)
    return trace(timm.create_model(name), dialect=dialect)


def timm_reference(size: int, patterns: Sequence[str] = ("*",), seed: int = 0) -> list[Architecture]:
    """timm architectures, drawn at random from those whose name matches a pattern.

    Args:
        size: number of architectures; all that match if there are fewer.
        patterns: with * and ?, as for `timm.list_models`.
        seed: of the choice.

    Returns:
        Architectures for `place`, in alphabetical order.

    Raises:
        ValueError: none matches.

    Example:
        >>> [a.name for a in timm_reference(3, ("resnet*",))]  # doctest: +SKIP
        ['resnet26d', 'resnetrs101', 'resnetrs350']
    """
    import timm

    names = [n for n in timm.list_models() if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
    if not names:
        raise InputError(f"No architecture of timm matches {','.join(patterns)}.")
    chosen = names if size >= len(names) else sorted(random.Random(int(seed)).sample(names, size))
    return [timm_architecture(name) for name in chosen]


def sampled_reference(size: int, seed: int = 0, split: str = "test") -> list[Architecture]:
    """Networks of a held-out split, as `train-ghn` samples them.

    Args:
        size: number of networks.
        seed: of the sample.
        split: "val" or "test".

    Returns:
        Architectures for `place`, named "test 0", "test 1" ...

    Example:
        >>> [a.name for a in sampled_reference(2)]
        ['test 0', 'test 1']
    """
    from ..training.networks import IMAGE, sample

    def architecture(index: int) -> Architecture:
        kind, module = sample(split, seed, index)
        return Architecture(f"{split} {index}", kind, lambda d: trace(module, IMAGE, d))

    return [architecture(index) for index in range(size)]


@torch.no_grad()
def embed_graph(ghn: GHN, graph: Graph) -> np.ndarray:
    """The embedding of a graph: the mean of its nodes' embeddings after message passing (Knyazev et al., 2021).

    Args:
        ghn: the hypernetwork.
        graph: from `trace`, in the GHN's dialect.

    Returns:
        (hid,) float64.

    Example:
        >>> from timm_ghn_init import load_ghn, trace
        >>> embed_graph(load_ghn("ghn2-fashion"), trace(timm.create_model("resnet18"))).shape  # doctest: +SKIP
        (32,)
    """
    return ghn.embed(graph).double().mean(dim=0).cpu().numpy()


def project(points: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """The first two principal components.

    Args:
        points: (n, d) with n > 1.

    Returns:
        (n, 2) coordinates, and the share of the variance that each axis holds, 0 to 1. The sign of an axis is such
        that the largest weight in it is positive.
    """
    centred = points - points.mean(axis=0)
    _, scale, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(axis=1)])[:, None]
    shares = (scale**2 / max((scale**2).sum(), 1e-300))[:2]
    coordinates = np.zeros((len(points), 2))
    coordinates[:, : len(axes)] = centred @ axes.T
    return coordinates, [*map(float, shares), 0.0][:2]


def place(
    ghn: GHN,
    given: Sequence[Architecture],
    reference: Iterable[Architecture],
    *,
    values: Mapping[str, float] | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """The numbers behind Figure 5: two principal components of graph embeddings.

    Args:
        ghn: the hypernetwork.
        given: architectures to point out.
        reference: others to place them among; one that cannot be traced is left out with a warning.
        values: by name, to colour architectures with.
        progress: True: tqdm; False: nothing. Default: after two seconds tqdm in a terminal, elsewhere a log line each
            minute.

    Returns:
        For JSON: "kind", "variance" (share of each axis), and "points", given ones first, each with "name", "group",
        "given", "nodes", "value" (None where there is none), "x" and "y", and its "embedding".

    Raises:
        TraceError: a given architecture cannot be traced.
        ValueError: there is nothing to compare with.
    """
    names = {a.name for a in given}
    jobs = [(a, True) for a in given] + [(a, False) for a in reference if a.name not in names]
    points, embeddings = [], []
    for architecture, is_given in over(jobs, "embedding", show=progress, unit="architecture"):
        try:
            graph = architecture.trace(ghn.dialect)
        except Exception as error:  # a model's own code may raise anything
            if is_given:
                raise
            _logger.warning("%s is left out: %s", architecture.name, error)
            continue
        embeddings.append(embed_graph(ghn, graph))
        points.append({"name": architecture.name, "group": architecture.group, "given": is_given})
        points[-1] |= {"nodes": len(graph.nodes), "value": _value(architecture.name, values or {})}
    if len(points) < 3:
        raise InputError("At least three architectures are needed: a larger reference set, or other patterns.")
    coordinates, variance = project(np.stack(embeddings))
    for point, (x, y), embedding in zip(points, coordinates.tolist(), embeddings, strict=True):
        point |= {"x": x, "y": y, "embedding": embedding.tolist()}
    return {"kind": "embeddings", "variance": variance, "points": points}


def _value(name: str, values: Mapping[str, float]) -> float | None:
    """Under the name itself, else the best of the architecture's tags ("resnet50" of "resnet50.a1_in1k" ...)."""
    if name in values:
        return values[name]
    base = name.partition(".")[0]
    return max((v for n, v in values.items() if n.partition(".")[0] == base), default=None)


def read_values(path: str | Path, column: str | None = None) -> tuple[str, dict[str, float]]:
    """Read one column of numbers.

    Args:
        path: a CSV with a header; names are in its column "model" or "name", else in the first.
        column: of the numbers. Default: the first one that has a number in the first row.

    Returns:
        The column's name, and the numbers by name; rows without a number are passed over. If a name
        occurs several times, the last row counts.

    Raises:
        ValueError: no such column, or no numbers.
        OSError: the file cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            names, rows = list(reader.fieldnames or ()), list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no CSV: {error}") from error
    key = next((n for n in names if n in ("model", "name")), names[0] if names else "")
    if column is None:
        column = next((n for n in names if n != key and rows and _number(rows[0][n]) is not None), None)
    if column is None or column not in names:
        raise InputError(f"{path} has no column {column or 'of numbers'!r}; it has {', '.join(names) or 'none'}.")
    numbers = {row[key]: number for row in rows if row[key] and (number := _number(row[column])) is not None}
    if not numbers:
        raise InputError(f"{path}: there is no number in the column {column!r}.")
    return column, numbers


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None
