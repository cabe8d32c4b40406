"""Eq. (1) and (2) on a GPU: layers of one shape at once, and one look at all results when they are there.

A small layer is over before the next kernel can be launched, and a look at a value, `float(x)`, waits for all that was
launched before it. So nothing here depends on values: what Cholesky factors could not do, which is rare, is told.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .noise import correlation_stds, draw_noise
from .orthogonal import cholesky_qr, orthogonalize_

_CHUNK = 1 << 24  # values in one batch, if not of a single layer: 128 MB in float64, and as much for each step


class Batch(NamedTuple):
    """Results for B weights, none of which was written to, still on the device."""

    columns: Tensor  #: float32 (B, c, n), c <= n: each weight as a matrix, transposed if it is tall
    sigma: Tensor  #: of Eq. (1), (B,), float64
    good: Tensor  #: (B,), whether Eq. (2) could be done, if it had to be


def process_batch(
    weights: Sequence[Tensor], streams: Sequence[str], beta: float, orthogonal: bool, seed: int, device: torch.device
) -> Batch:
    """Eq. (1) and (2) on weights of one shape, without looking at any value.

    Args:
        weights: (K, C, ...) each, of any floating dtype.
        streams: names by which their noise is drawn.
        device: where to compute.
    """
    matrices = [w.detach().reshape(len(w), -1) for w in weights]
    tall = matrices[0].shape[0] >= matrices[0].shape[1]
    columns = torch.stack([(m.T if tall else m).to(device, torch.float32) for m in matrices])
    sigma = correlation_stds(columns)
    if beta > 0:
        noise = torch.stack([draw_noise(columns[0].numel(), seed, s, device).view_as(columns[0]) for s in streams])
        columns = torch.addcmul(columns, noise, (beta * sigma).to(columns.dtype)[:, None, None])
    if not orthogonal:
        return Batch(columns, sigma, torch.ones_like(sigma, dtype=torch.bool))
    q, good = cholesky_qr(columns, _period(weights[0], tall))
    return Batch(q.to(torch.float32), sigma, good)


def orthogonal_alone(columns: Tensor) -> Tensor:
    """Eq. (2) on one (c, n) matrix that `process_batch` could not do, in place. It looks at values."""
    q, good = cholesky_qr(columns[None], shifted=True)
    return columns.copy_(q[0]) if bool(good) else orthogonalize_(columns)


def _period(weight: Tensor, tall: bool) -> int:
    """After how many columns those of a predicted weight repeat: a block has 64 x 64 channels, but for some GHN-3."""
    return 64 * (weight[0, 0].numel() if tall else 1)


def write_back(columns: Tensor, weight: Tensor) -> None:
    """Write a result into the weight that it is of."""
    rows = len(weight)
    matrix = columns.T if rows >= weight.numel() // rows else columns
    weight.detach().copy_(matrix.reshape(weight.shape))


def batches(kinds: Mapping[str, Hashable], sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names of what can be done together, and does not take too much memory.

    Args:
        kinds: what must be equal within a batch, by name.
        sizes: number of values, by name; those of one kind have the same.
    """
    groups: dict[Hashable, list[str]] = defaultdict(list)
    for name, kind in kinds.items():
        groups[kind].append(name)
    for names in groups.values():
        most = max(1, _CHUNK // max(1, sizes[names[0]]))
        for start in range(0, len(names), most):
            yield names[start : start + most]
