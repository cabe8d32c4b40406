"""Differences of two sets of weights, tensor by tensor."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Difference(NamedTuple):
    """One tensor in two sets of weights. It is None for tensors that cannot be compared or have one value.

    Attributes:
        name: of the tensor.
        shapes: in the first and the second; None where it is missing.
        norms: Euclidean, likewise.
        equal: whether all values agree; False where one is missing.
        distance: norm of the difference, in units of the larger of the two norms. In double precision, so that of large
            whole numbers and of the smallest numbers it may be 0 although they differ.
        correlation: Pearson's, of the values; real and imaginary parts count as two.
    """

    name: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    norms: tuple[float | None, float | None]
    equal: bool
    distance: float | None
    correlation: float | None


def differences(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[Difference]:
    """Compare two sets of weights, tensor by tensor.

    Args:
        first, second: tensors by name, e.g. state dicts; any dtypes.

    Returns:
        A row for each name, in the order of the first; then those that only the second has.

    Example:
        >>> rows = differences({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 4.5])})
        >>> rows[0].equal, rows[0].norms[0], round(rows[0].distance, 4)
        (False, 5.0, 0.0925)
    """
    return [_difference(name, first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])]


def _difference(name: str, a: Tensor | None, b: Tensor | None) -> Difference:
    shapes = tuple(None if t is None else tuple(t.shape) for t in (a, b))
    norms = tuple(None if t is None else torch.linalg.vector_norm(_real(t)).item() for t in (a, b))
    equal, distance, correlation = False, None, None
    if a is not None and b is not None and a.shape == b.shape:
        common = torch.promote_types(a.dtype, b.dtype)
        equal = torch.equal(a.to(common), b.to(common))
        x, y = _real(a.to(common)), _real(b.to(common))
        largest = max(n for n in norms if n is not None)
        distance = torch.linalg.vector_norm(x - y).item() / largest if largest else 0.0
        correlation = _correlation(x, y)
    return Difference(name, shapes, norms, equal, distance, correlation)  # type: ignore[arg-type]  # of two each


def _real(tensor: Tensor) -> Tensor:
    """All values of a tensor in double precision, of complex ones both parts."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double().flatten()


def _correlation(x: Tensor, y: Tensor) -> float | None:
    x, y = x - x.mean(), y - y.mean()
    size = torch.linalg.vector_norm(x) * torch.linalg.vector_norm(y)
    return (x @ y / size).item() if len(x) > 1 and size > 0 else None


def summary(rows: list[Difference]) -> dict[str, Any]:
    """A summary of the rows.

    Returns:
        For JSON: "equal", "different", "shape", "first" and "second": the names of the tensors whose values all agree,
        that differ, that have other shapes, and that only one of the two has; "distance" of those in both, as
        one vector each.
    """
    both = [row for row in rows if row.distance is not None]
    squares = [sum((row.norms[i] or 0) ** 2 for row in both) for i in (0, 1)]
    apart = sum((row.distance or 0) ** 2 * max(n or 0 for n in row.norms) ** 2 for row in both)
    return {
        "equal": [row.name for row in both if row.equal],
        "different": [row.name for row in both if not row.equal],
        "shape": [row.name for row in rows if None not in row.shapes and row.distance is None],
        "first": [row.name for row in rows if row.shapes[1] is None],
        "second": [row.name for row in rows if row.shapes[0] is None],
        "distance": (apart / max(squares)) ** 0.5 if max(squares, default=0) else 0.0,
    }
