"""The low-rank factors of an adapter, in the order and as wide as the host holds them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.stored_matrix import StoredMatrix
from hotshoe.registry.validation import Pause
from hotshoe.server.adapters.factor_layout import FactorLayout, factor_layout
from hotshoe.server.adapters.sites import SiteId, SiteShape

_LARGE_BYTES = 32 << 20  # so much is worth a thousand objects that the garbage collector has to visit
_LINE_BYTES = 64
_Matrix = Tensor | StoredMatrix


@dataclass(frozen=True, slots=True)
class PackedFactors:
    """All factors of an adapter, as `layout` has them, and what the B of each pair is still to be multiplied with."""

    layout: FactorLayout
    factors: Tensor  # [layout.num_elements], flat
    scales: tuple[float, ...]  # none if it is 1 for all


def pack_factors(
    sites: Mapping[SiteId, Sequence[LoweredLinear]],
    shapes: Mapping[SiteId, SiteShape],
    dtype: torch.dtype,
    pause: Pause,
    *,
    as_stored: bool,
) -> PackedFactors:
    """The factors of all sites: where they lie, if they are large and lie there side by side, else in a copy.

    They are in `dtype`, or if `as_stored` as their file has them, where it has all alike.
    """
    ranks = {site: tuple(linear.rank for linear in linears) for site, linears in sites.items()}
    key = tuple((site, shapes[site], found) for site, found in ranks.items() if any(found))
    matrices = [matrix for linears in sites.values() for matrix in _matrices(linears)]
    scales: tuple[float, ...] = ()
    if as_stored and (stored := _all_stored(matrices)):
        dtype, scales = stored[0].values.dtype, tuple(matrix.scale for matrix in stored[1::2])
        matrices = [matrix.values for matrix in stored]
        scales = () if set(scales) <= {1} else scales
    if (found := _side_by_side([_as_it_is(matrix) for matrix in matrices], dtype)) is not None:
        factors, starts = found
        return PackedFactors(factor_layout(key, starts), factors, scales)
    layout = factor_layout(key)
    return PackedFactors(layout, _copied(matrices, layout, dtype, pause), scales)


def _matrices(linears: Sequence[LoweredLinear]) -> list[_Matrix]:
    """A and B of each that has ranks."""
    found = [matrix for linear in linears if linear.rank for matrix in (linear.a, linear.b)]
    return [matrix for matrix in found if matrix is not None]


def _all_stored(matrices: Sequence[_Matrix]) -> list[StoredMatrix]:
    """All, if they are as their file has them, in one dtype, and no A has a scale; else none."""
    stored = [matrix for matrix in matrices if isinstance(matrix, StoredMatrix)]
    fits = len(stored) == len(matrices) and len({one.values.dtype for one in stored}) == 1
    return stored if fits and all(one.scale == 1 for one in stored[::2]) else []


def _as_it_is(matrix: _Matrix) -> Tensor | None:
    """What it stands for, if its numbers need nothing more."""
    if isinstance(matrix, StoredMatrix):
        return matrix.values if matrix.scale == 1 else None
    return matrix


def _copied(matrices: Sequence[_Matrix], layout: FactorLayout, dtype: torch.dtype, pause: Pause) -> Tensor:
    """All matrices, one behind the other."""
    # numpy asks for large pages, which are filled in a third of the time.
    factors = torch.from_numpy(np.empty(layout.num_elements, f"i{dtype.itemsize}")).view(dtype)
    left = iter(matrices)
    for _, pairs in layout.by_site(factors):
        targets = [tensor.t() for pair in pairs for tensor in (pair.a, pair.b)]
        sources = [_wide(matrix, dtype) for matrix in islice(left, len(targets))]
        torch._foreach_copy_(targets, sources)
        pause()
    return factors


def _wide(matrix: _Matrix, dtype: torch.dtype) -> Tensor:
    """What it stands for, in float32 unless it is in `dtype`."""
    if isinstance(matrix, StoredMatrix):
        return matrix.values if (matrix.values.dtype, matrix.scale) == (dtype, 1) else matrix.wide()
    return matrix


def _side_by_side(matrices: Sequence[Tensor | None], dtype: torch.dtype) -> tuple[Tensor, tuple[int, ...]] | None:
    """One tensor over all of them, in their own memory, and where in it each begins; None where they do not lie so."""
    found = [matrix for matrix in matrices if matrix is not None and matrix.dtype is dtype and matrix.is_contiguous()]
    if len(found) < len(matrices) or sum(matrix.nbytes for matrix in found) < _LARGE_BYTES:
        return None
    spans = sorted((matrix.data_ptr(), matrix.data_ptr() + matrix.nbytes) for matrix in found)
    gaps = [start - end for (_, end), (start, _) in zip(spans, spans[1:], strict=False)]
    if not all(0 <= gap < _LINE_BYTES and gap % dtype.itemsize == 0 for gap in gaps):
        return None
    first, end = spans[0][0], spans[-1][1]
    whole = torch.from_numpy(np.asarray(_Memory(first, end - first, found))).view(dtype)
    return whole, tuple((matrix.data_ptr() - first) // dtype.itemsize for matrix in found)


class _Memory:
    """A span of memory as an array of bytes, which keeps those who have it from being freed."""

    def __init__(self, address: int, size_bytes: int, owners: Iterable[object]) -> None:
        self.owners = tuple(owners)
        self.__array_interface__: dict[str, Any] = {
            "version": 3,
            "typestr": "|u1",
            "shape": (size_bytes,),
            "data": (address, False),
        }
