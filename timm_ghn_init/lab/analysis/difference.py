"""Two sets of weights side by side, tensor by tensor."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Difference(NamedTuple):
    """One tensor in two sets of weights. What cannot be compared, or is of one value, is None.

    Attributes:
        name: of the tensor.
        shapes: in the first and the second; None where it is missing.
        norms: Euclidean, likewise.
        distance: norm of the difference, in units of the larger of the two norms; 0 where all bits agree.
        correlation: Pearson's, of the values.
    """

    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    norms: tuple[float | None, float | None]
    distance: float | None
    correlation: float | None


def differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[Difference]:
    """Compare weights by name, in the order of the first; then those that only the second has."""
    return [_difference(name, first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])]


def _difference(name: str, a: Tensor | None, b: Tensor | None) -> Difference:
    shapes = tuple(None if t is None else tuple(t.shape) for t in (a, b))
    norms = tuple(None if t is None else torch.linalg.vector_norm(t.double()).item() for t in (a, b))
    distance = correlation = None
    if a is not None and b is not None and a.shape == b.shape:
        x, y = (t.detach().double().flatten() for t in (a, b))
        largest = max(n for n in norms if n is not None)
        distance = torch.linalg.vector_norm(x - y).item() / largest if largest else 0.0
        correlation = _correlation(x, y)
    return Difference(name, shapes, norms, distance, correlation)  # type: ignore[arg-type]  # of two each


def _correlation(x: Tensor, y: Tensor) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    size = torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y)
    return (x @ y / size).item() if len(x) > 1 and size > 0 else None


def summary(rows: list[Difference]) -> dict[str, Any]:
    """What the rows say together.

    Returns:
        For JSON: "equal", "different", "shape", "first" and "second": the names of the tensors that are the same to
        the bit, that differ, that have other shapes, and that only one of the two has; "distance" of those in both, as
        one vector each.
    """
    both = [row for row in rows if row.distance is not None]
    squares = [sum((row.norms[i] or 0) ** 2 for row in both) for i in (0, 1)]
    apart = sum((row.distance or 0) ** 2 * max(n or 0 for n in row.norms) ** 2 for row in both)
    return {
        "equal": [row.name for row in both if row.distance == 0],
        "different": [row.name for row in both if row.distance],
        "shape": [row.name for row in rows if None not in row.shapes and row.distance is None],
        "first": [row.name for row in rows if row.shapes[1] is None],
        "second": [row.name for row in rows if row.shapes[0] is None],
        "distance": (apart / max(squares)) ** 0.5 if max(squares, default=0) else 0.0,
    }
