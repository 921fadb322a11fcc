"""The nearest matrix with orthonormal rows or columns, by matrix products alone: Muon's update.

G = U S V^T --> about U V^T. Every step applies an odd polynomial to the singular values, a s + b s^3 + c s^5:

    X <- (a I + b R + c R^2) X        R = X X^T, or X^T X on the right where G is tall

- Polynomials: those of Polar Express (arXiv 2505.16932, algorithm 1), which differ from step to step and leave the
  least largest error on [l, 1]. The one that Muon began with (kellerjordan.github.io/posts/muon: 3.4445, -4.7750,
  2.0315 in each of five steps) leaves singular values between 0.7 and 1.2 and does not converge.
- Scale: all singular values must be at most 1. Their Frobenius norm is a bound, but a loose one; (tr R^4)^(1/8), the
  Schatten norm of order 8, lies below it and costs nothing, because the first step needs R^2 anyway. (Turbo-Muon, arXiv
  2512.04632, takes a bound for each column from R.)
- Products: in fp32 the polynomials of oblong matrices are multiplied out on the small side first, Q = ... P2 P1, and
  meet G once (Gram Newton-Schulz, tridao.me/blog/2026/gram-newton-schulz). In bf16 that is unstable, so R is made anew
  in every step. Products that are symmetric are computed up to their diagonal blocks and mirrored.
- Type: the one that the device multiplies fast, never an emulated half (`product_type`).

Letters of shapes: B matrices of one shape, M rows, N columns, K the smaller of both.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from pretrain.speed_choice import has_bf16

COEFFICIENTS = {
    4: (
        (8.137724, -22.713709, 16.325438),
        (3.966694, -2.836752, 0.522403),
        (3.500323, -2.570502, 0.502553),
        (2.534738, -1.872045, 0.440990),
    ),
    5: (
        (8.205160, -22.901935, 16.460725),
        (4.066916, -2.861285, 0.518380),
        (3.913493, -2.824252, 0.524849),
        (3.306014, -2.430228, 0.486952),
        (2.327057, -1.692497, 0.421361),
    ),
}
"""(a, b, c) of every step, by the number of steps: l = 0.003 for four and 0.001 for five, cushion 0.024 and safety 1.01
as published; singular values from l on end between 0.78 and 1.22, and between 0.87 and 1.13."""
MARGIN = 1.01
"""The bound of the singular values is taken this much larger: rounding may lift them above it."""
LEAST_BLOCK, MOST_BLOCKS = 64, 4
"""A symmetric product is cut into at most so many rows of blocks, none lower than that."""


def product_type(device: torch.device) -> torch.dtype:
    """bf16 where the device multiplies it itself (AMX, AVX512-BF16, CUDA), else fp32.

    fp16 is more precise, but on a CPU with AMX six times as slow; where halves are emulated both are far slower than
    fp32.
    """
    supported = has_bf16() if device.type == "cpu" else get_accelerator().is_bf16_supported()
    return torch.bfloat16 if supported else torch.float32


def orthogonalise(matrices_BMN: Tensor, steps: int) -> Tensor:
    """U V^T of each matrix, about: [B, M, N] in the type that was given, fp32 or bf16.

    Args:
        matrices_BMN: finite matrices of Frobenius norms from 1e-15 to 1e15; zero ones stay zero.
        steps: a key of COEFFICIENTS.
    """
    gram_BKK, square_BKK, inverse_B11 = _bounded_gram(matrices_BMN)
    rows, columns = matrices_BMN.shape[1:]
    if _multiplies_out(rows, columns, matrices_BMN.dtype):
        product_BKK = _product_of_polynomials(gram_BKK, square_BKK, COEFFICIENTS[steps])
        return _times(product_BKK.mul_(inverse_B11), matrices_BMN)
    x_BMN = matrices_BMN
    for step, (a, b, c) in enumerate(COEFFICIENTS[steps]):
        if step:
            gram_BKK = _gram(x_BMN)
            square_BKK = _symmetric_product(gram_BKK, gram_BKK)
        polynomial_BKK = _polynomial(gram_BKK, square_BKK, a, b, c)
        x_BMN = _times(polynomial_BKK if step else polynomial_BKK.mul_(inverse_B11), x_BMN)
    return x_BMN


def _bounded_gram(x_BMN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """R and R^2 of X / s, where s bounds its singular values, and 1 / s."""
    gram_BKK = _gram(x_BMN)
    smallest = torch.finfo(torch.float32).tiny
    squares_B11 = gram_BKK.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=torch.float32)[:, None, None].clamp(min=smallest)
    gram_BKK.mul_(squares_B11.reciprocal())  # of Frobenius norm 1, so that R^2 can be written
    square_BKK = _symmetric_product(gram_BKK, gram_BKK)
    bound_B11 = torch.linalg.vector_norm(square_BKK, dim=(-2, -1), keepdim=True, dtype=torch.float32).sqrt()
    inverse_B11 = (MARGIN**2 * bound_B11.clamp(min=torch.finfo(torch.float32).eps)).reciprocal()
    gram_BKK.mul_(inverse_B11)
    square_BKK.mul_(inverse_B11.square())
    return gram_BKK, square_BKK, inverse_B11.sqrt() * squares_B11.rsqrt()


def _is_tall(x_BMN: Tensor) -> bool:
    return x_BMN.shape[1] > x_BMN.shape[2]


def _gram(x_BMN: Tensor) -> Tensor:
    """R, on the small side of X."""
    return _symmetric_product(x_BMN.mT, x_BMN) if _is_tall(x_BMN) else _symmetric_product(x_BMN, x_BMN.mT)


def _polynomial(gram_BKK: Tensor, square_BKK: Tensor, a: float, b: float, c: float) -> Tensor:
    """a I + b R + c R^2, in the place of R^2."""
    square_BKK.mul_(c).add_(gram_BKK, alpha=b).diagonal(dim1=-2, dim2=-1).add_(a)
    return square_BKK


def _times(factor_BKK: Tensor, x_BMN: Tensor) -> Tensor:
    return torch.bmm(x_BMN, factor_BKK) if _is_tall(x_BMN) else torch.bmm(factor_BKK, x_BMN)


def _product_of_polynomials(
    gram_BKK: Tensor, square_BKK: Tensor, coefficients: tuple[tuple[float, float, float], ...]
) -> Tensor:
    """The product of all steps' polynomials of R, which itself becomes P R P; they commute, so all are symmetric."""
    product_BKK: Tensor | None = None
    for step, (a, b, c) in enumerate(coefficients):
        if step:
            square_BKK = _symmetric_product(gram_BKK, gram_BKK)
        polynomial_BKK = _polynomial(gram_BKK, square_BKK, a, b, c)
        product_BKK = polynomial_BKK if product_BKK is None else _symmetric_product(polynomial_BKK, product_BKK)
        if step < len(coefficients) - 1:
            gram_BKK = _symmetric_product(polynomial_BKK, _symmetric_product(polynomial_BKK, gram_BKK))
    assert product_BKK is not None
    return product_BKK


def _symmetric_product(left_BKN: Tensor, right_BNK: Tensor) -> Tensor:
    """The product of two matrices that is known to be symmetric: blocks on and left of the diagonal, mirrored."""
    batch, rows = left_BKN.shape[:2]
    product_BKK = left_BKN.new_empty(batch, rows, rows)
    for low, high in _row_blocks(rows):
        torch.bmm(left_BKN[:, low:high], right_BNK[:, :, :high], out=product_BKK[:, low:high, :high])
        if low:
            product_BKK[:, :low, low:high] = product_BKK[:, low:high, :low].mT
    return product_BKK


def _row_blocks(rows: int) -> list[tuple[int, int]]:
    count = max(1, min(MOST_BLOCKS, rows // LEAST_BLOCK))
    edges = [rows * number // count for number in range(count + 1)]
    return list(pairwise(edges))


def _multiplies_out(rows: int, columns: int, dtype: torch.dtype) -> bool:
    return rows != columns and dtype == torch.float32


def orthogonalisation_flops(rows: int, columns: int, steps: int, dtype: torch.dtype) -> int:
    """FLOPs of the matrix products in which one matrix is orthogonalised."""
    small, large = sorted((rows, columns))
    symmetric = sum(2 * (high - low) * high for low, high in _row_blocks(small))  # for each element of the inner side
    if _multiplies_out(rows, columns, dtype):
        return symmetric * (large + small * (4 * steps - 3)) + 2 * small * small * large
    return steps * (symmetric * (large + small) + 2 * small * small * large)
