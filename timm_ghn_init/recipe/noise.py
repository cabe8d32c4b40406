"""Conditional noise, Eq. (1) of the paper: the more a weight's channels correlate, the larger."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

_NOISE_BLOCK = 1 << 18  # values drawn at once
_CORRELATION_BLOCK = 256  # columns of the Gram matrix computed at once


def correlation_std(matrix: Tensor) -> float:
    """sigma(r(w)) of Eq. (1): standard deviation of all entries of the correlation matrix of a matrix's rows.

    Equals `torch.corrcoef(matrix).std()`, diagonal included, without the (n, n) matrix C. Let the rows of Z be the
    matrix's rows, centred and of unit length, m their mean and W = Z - 1 m^T. Then C = Z Z^T less its mean |m|^2 is
    1 (W m)^T + (W m) 1^T + W W^T, three terms that are orthogonal because W's columns sum to 0, so that the squared
    deviations sum to 2 n |W m|^2 + |W^T W|_F^2, with nothing to cancel. Rows that repeat, as those of a tiled weight
    do, are taken once and weighted by how often they occur.

    The standard deviation is the unbiased one. Constant rows have correlation 0; a single row has 0.
    """
    n = len(matrix)
    if n < 2:
        return 0.0
    period = _row_period(matrix)
    z = matrix[:period].T.to(torch.float32, memory_format=torch.contiguous_format, copy=True)  # (c, period)
    low, high = torch.aminmax(z, dim=0)
    z -= z.mean(dim=0)
    for order in (math.inf, 2):  # by the largest entry first, or the squares could overflow or underflow
        z /= torch.linalg.vector_norm(z, order, dim=0)
    z.masked_fill_(low == high, 0)  # asked of the raw values: rounding leaves a constant row a residue or NaN
    count = torch.arange(n - 1, n - 1 - period, -1, device=z.device).div(period, rounding_mode="floor").add(1).float()
    mean = (z @ count) / n
    z -= mean[:, None]
    z *= count.sqrt()
    squares = 2 * n * _sum_of_squares(mean @ z) + _gram_sum_of_squares(z if len(z) < period else z.T)
    return math.sqrt(squares / (n**2 - 1))


def correlation_stds(columns: Tensor) -> Tensor:
    """`correlation_std` of several transposed matrices, (B, c, n), c <= n, without looking at any value."""
    n = columns.shape[2]
    if n < 2:
        return columns.new_zeros(len(columns), dtype=torch.float64)
    low, high = torch.aminmax(columns, dim=1, keepdim=True)
    z = columns - columns.mean(1, keepdim=True)
    for order in (math.inf, 2):
        z = z / torch.linalg.vector_norm(z, order, dim=1, keepdim=True)
    z = z.masked_fill(low == high, 0)
    mean = z.mean(2, keepdim=True)
    z = z - mean
    squares = 2 * n * _squares(mean.mT @ z) + _squares(z @ z.mT)
    return (squares / (n**2 - 1)).sqrt()


def _squares(x: Tensor) -> Tensor:
    """Sums of squares of (B, ...), accumulated in float64."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1, dtype=torch.float64).square()


def _row_period(matrix: Tensor) -> int:
    """Smallest p for which row i + p equals row i everywhere; the number of rows where they do not repeat."""
    head = matrix[:, :32]
    repeats_of_first = (head == head[0]).all(dim=1).nonzero()[:2].flatten().tolist()
    period = repeats_of_first[-1]
    return period if period > 0 and torch.equal(matrix[period:], matrix[:-period]) else len(matrix)


def _sum_of_squares(x: Tensor) -> float:
    """Sum of squares, accumulated in float64."""
    return float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2


def _gram_sum_of_squares(rows: Tensor) -> float:
    """|rows @ rows^T|_F^2 by blocks of its upper triangle: half the products, and never the whole Gram matrix."""
    total = 0.0
    for start in range(0, len(rows), _CORRELATION_BLOCK):
        block = rows[start : start + _CORRELATION_BLOCK]
        gram = block @ rows[start:].T
        total += 2 * _sum_of_squares(gram) - _sum_of_squares(gram[:, : len(block)])
    return total


def add_noise_(x: Tensor, std: float, seed: int, name: str) -> None:
    """Adds N(0, std^2) on the CPU, drawn from a generator of its own. In blocks: less memory, and within caches."""
    if std == 0:
        return
    generator = seeded_generator(seed, name)
    for block in x.view(-1).split(_NOISE_BLOCK):
        block.add_(torch.randn(block.shape, generator=generator, dtype=x.dtype), alpha=std)


def draw_noise(count: int, seed: int, name: str, device: torch.device) -> Tensor:
    """N(0, 1), all at once: for a GPU, whose own generator draws something else anyway."""
    return torch.randn(count, generator=seeded_generator(seed, name, device), device=device, dtype=torch.float32)


def seeded_generator(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """The random stream of one parameter: it depends on the seed and the parameter's name only."""
    key = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(key[:8], "big"))
