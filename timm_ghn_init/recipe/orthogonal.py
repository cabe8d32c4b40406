"""Orthogonal re-initialisation, Eq. (2) of the paper: Q * sign(diag R) of a QR decomposition.

This is the one Q whose R has a positive diagonal, so any algorithm that yields it will do. Householder reflections
work on every matrix. On a GPU they run far below the matrix rate, so there Q comes from Cholesky factors of the Gram
matrix: matrix products, in float64 because the Gram matrix has the squared condition number, repeated until Q is
orthonormal. What is too close to rank-deficient for that is left to Householder.

Matrices are held transposed, one *column* of the tall (n, c) matrix per contiguous row of a (c, n) buffer. This is
the layout LAPACK works in, so a decomposition needs no copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHOLESKY_PASSES = 4
_ORTHONORMAL_TO = 1e-7  # largest entry of |Q^T Q - I|; float32 output cannot show less


def orthogonalize_(columns: Tensor) -> Tensor:
    """Replaces a matrix by its orthonormal factor, in place (paper, Section 3.2).

    Args:
        columns: Contiguous float32 (c, n) buffer with c <= n, finite: row j is column j of the (n, c) matrix.

    Returns:
        `columns`, now the transpose of Q * sign(diag R). Always finite and orthonormal, also for rank-deficient
        matrices, because sign(0) counts as 1 here: a zero on R's diagonal must not wipe out a column of Q.
    """
    if columns.is_cuda:
        q = cholesky_qr(columns)
        if q is not None:
            return columns.copy_(q)
    return householder_qr_(columns)


def householder_qr_(columns: Tensor) -> Tensor:
    """`orthogonalize_` by Householder reflections, with no memory beyond LAPACK's workspace."""
    matrix, tau = columns.T, columns.new_empty(len(columns))
    torch.geqrf(matrix, out=(matrix, tau))
    flip = columns.diagonal() < 0
    torch.linalg.householder_product(matrix, tau, out=matrix)
    return columns.mul_(torch.where(flip, -1.0, 1.0)[:, None])


def cholesky_qr(columns: Tensor) -> Tensor | None:
    """`orthogonalize_` by shifted, repeated Cholesky QR in float64; not in place.

    Each pass takes the Gram matrix G = L L^T and replaces Q^T by L^-1 Q^T. The shift of the first pass keeps its G
    positive definite whatever the rounding, and lowers the condition number enough for the later, unshifted ones
    (Fukaya et al., "Shifted CholeskyQR for computing the QR factorization of ill-conditioned matrices", 2020). Every
    pass multiplies R by a factor with a positive diagonal, so the signs come out right by construction.

    Returns:
        Float64 (c, n) result, or None where Q did not become orthonormal: the matrix is rank-deficient to float64.
    """
    q = columns.double()
    eye = torch.eye(len(q), dtype=q.dtype, device=q.device)
    for n_pass in range(_CHOLESKY_PASSES):
        gram = q @ q.T
        if n_pass > 0 and bool((gram - eye).abs().max() <= _ORTHONORMAL_TO):
            return q
        if n_pass == 0:
            gram += eye * (gram.trace() * len(q) * torch.finfo(q.dtype).eps)
        lower, info = torch.linalg.cholesky_ex(gram)
        if bool(info != 0):
            return None
        q = torch.linalg.solve_triangular(lower, q, upper=False)
    return None
