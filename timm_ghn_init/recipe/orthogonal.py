"""Orthogonal re-initialisation, Eq. (2) of the paper: Q * sign(diag R) of a QR decomposition.

This is the one Q whose R has a positive diagonal, so any algorithm that yields it will do. Householder reflections
work on every matrix. On a GPU they run far below the matrix rate, so there Q comes from Cholesky factors of the Gram
matrices of many matrices at once: products, in float64 because a Gram matrix has the squared condition number. Matrices
that are too close to rank-deficient for that are left to Householder.

Matrices are held transposed, one *column* of the tall (n, c) matrix per contiguous row of a (c, n) buffer. This is
the layout LAPACK works in, so a decomposition needs no copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ORTHONORMAL_TO = 1e-7  # largest entry of |Q^T Q - I|; float32 output cannot show less
NO_PERIOD = 1 << 62


def orthogonalize_(columns: Tensor) -> Tensor:
    """Replace a transposed matrix, (c, n), c <= n, by its orthonormal factor, in place (paper, Section 3.2).

    The result is finite and orthonormal for rank-deficient matrices too, because sign(0) counts as 1 here: a zero on
    R's diagonal must not wipe out a column of Q.
    """
    matrix, tau = columns.T, columns.new_empty(len(columns))
    torch.geqrf(matrix, out=(matrix, tau))
    flip = columns.diagonal() < 0
    torch.linalg.householder_product(matrix, tau, out=matrix)
    return columns.mul_(torch.where(flip, -1.0, 1.0).to(columns)[:, None])


def cholesky_qr(columns: Tensor, period: int = NO_PERIOD, shifted: bool = False) -> tuple[Tensor, Tensor]:
    """`orthogonalize_` for several matrices by repeated Cholesky QR in float64; not in place, and without looking.

    Each pass takes the Gram matrix G = L L^T and replaces Q^T by L^-1 Q^T. Every pass multiplies R by a factor with a
    positive diagonal, so the signs come out right by construction. Two passes do for condition numbers up to 1e7. A
    shift keeps the first G positive definite whatever the rounding, and lowers the condition number enough for two
    more (Fukaya et al., "Shifted CholeskyQR for computing the QR factorization of ill-conditioned matrices", 2020).

    Columns that repeat are all but parallel: those of a tiled weight differ by the noise of Eq. (1) alone. Subtracting
    an earlier column from a later one, and scaling by a positive number, changes neither Q nor its signs, whatever the
    matrix. So from every column beyond the period that one of the first is subtracted which it repeats, which leaves
    the noise, at the size of all others, and the condition number of 1e8 becomes one that two passes can do.

    Args:
        columns: (B, c, n), c <= n.
        period: after how many columns they repeat. A wrong one costs accuracy, which is checked.
        shifted: three passes, of which the first is shifted.

    Returns:
        Float64 (B, c, n), and which of them are orthonormal: the others are rank-deficient to float64.
    """
    q, c = columns.double(), columns.shape[1]
    if period < c:
        first = torch.arange(period, c, device=q.device) % period
        q = torch.cat((q[:, :period], q[:, period:] - q[:, first]), 1)
    q = q / torch.linalg.vector_norm(q, dim=2, keepdim=True)
    good = torch.ones(len(q), dtype=torch.bool, device=q.device)
    eye = torch.eye(c, dtype=q.dtype, device=q.device)
    for n_pass in range(2 + shifted):
        gram = q @ q.mT
        if shifted and n_pass == 0:
            gram = gram + eye * (c * c * torch.finfo(q.dtype).eps)  # the trace is c
        lower, info = torch.linalg.cholesky_ex(gram)
        good &= info == 0
        q = torch.linalg.solve_triangular(lower, q, upper=False)
    off = (q @ q.mT - eye).abs().amax((1, 2))
    return q, good & (off <= _ORTHONORMAL_TO)  # NaN is not
