"""The low-rank factors of an adapter, in the order and as wide as the host holds them."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.stored_matrix import StoredMatrix
from hotshoe.registry.validation import Pause
from hotshoe.server.adapters.factor_layout import FactorLayout
from hotshoe.server.adapters.sites import SiteId

_LARGE = 1 << 14  # numbers of a matrix
_Matrix = Tensor | StoredMatrix


def pack_factors(
    sites: Mapping[SiteId, Sequence[LoweredLinear]], layout: FactorLayout, dtype: torch.dtype, pause: Pause
) -> tuple[Tensor, tuple[float, ...]]:
    """The factors of all sites, flat, as `layout` has them, and what the B of each is still to be multiplied with.

    They are in `dtype`, or as their file has them if that is narrower; then a table has to be multiplied once it holds
    them, unless it is with 1.
    """
    matrices = {site: _matrices(linears) for site, linears in sites.items()}
    scales: tuple[float, ...] = ()
    stored = _all_stored(matrices.values()) if dtype is torch.float32 else []
    if stored:
        dtype, scales = stored[0].values.dtype, tuple(matrix.scale for matrix in stored[1::2])
        matrices = {site: [_unscaled(matrix) for matrix in found] for site, found in matrices.items()}
    # numpy asks for large pages, which are filled in a third of the time.
    factors = torch.from_numpy(np.empty(layout.num_elements, f"i{dtype.itemsize}")).view(dtype)
    for site, pairs in layout.by_site(factors):
        targets = [tensor for pair in pairs for tensor in (pair.a, pair.b)]
        torch._foreach_copy_(targets, [_in_dtype(matrix, dtype).t() for matrix in matrices[site]])
        pause()
    return factors, () if set(scales) <= {1} else scales


def _matrices(linears: Sequence[LoweredLinear]) -> list[_Matrix]:
    """A and B of each that has ranks."""
    found = [matrix for linear in linears if linear.rank for matrix in (linear.a, linear.b)]
    return [matrix for matrix in found if matrix is not None]


def _all_stored(matrices: Iterable[Sequence[_Matrix]]) -> list[StoredMatrix]:
    """All, if they are as their file has them, in one dtype, and no A has a scale; else none."""
    every = [matrix for found in matrices for matrix in found]
    stored = [matrix for matrix in every if isinstance(matrix, StoredMatrix)]
    fits = len(stored) == len(every) and len({one.values.dtype for one in stored}) == 1
    return stored if fits and all(one.scale == 1 for one in stored[::2]) else []


def _unscaled(matrix: _Matrix) -> Tensor:
    return matrix.values if isinstance(matrix, StoredMatrix) else matrix


def _in_dtype(matrix: _Matrix, dtype: torch.dtype) -> Tensor:
    """The matrix, rounded to `dtype` if it is large: to turn it is then several times quicker than both at once."""
    if isinstance(matrix, StoredMatrix):
        matrix = matrix.values if (matrix.values.dtype, matrix.scale) == (dtype, 1) else matrix.wide()
    return matrix.to(dtype) if matrix.numel() >= _LARGE else matrix
