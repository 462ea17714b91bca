"""Where the factors of adapters with one layout go in the low-rank tables, and how they are brought there."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable
from hotshoe.registry.validation import Pause, go_on
from hotshoe.server.adapters.factor_layout import FactorLayout, last_pieces, pieces_of, places_of
from hotshoe.server.adapters.large_pages import ask_for_large_pages
from hotshoe.server.adapters.one_core import let_others_first
from hotshoe.server.adapters.sites import SiteId

_AT_ONCE = 1 << 20  # numbers that are written between two pauses, or as many as one matrix has
_SHARED_BYTES = 4 << 20  # of factors: less is written before another thread has begun


class FactorPlaces(Protocol):
    """Kept for the next adapter that comes to the same units."""

    def write(self, factors: Tensor, scales: Sequence[float], pause: Pause, *, threads: int) -> None:
        """Writes factors that lie as the layout says, each B times its scale.

        `threads` do so where that is quicker; this one is among them, and calls `pause` at each site or sooner.
        """


class TensorPlaces:
    """Views of the tables, which torch copies to, on whatever device they are."""

    def __init__(
        self, layout: FactorLayout, tables: Mapping[SiteId, LowRankTable], first_unit: int, *, folded: bool
    ) -> None:
        self._layout = layout
        self._folded = folded
        self._places = [
            places_of(ranks, tables[site], first_unit, folded=folded) for site, ranks in layout.ranks.items()
        ]
        self._units = [_units(layout, tables[site], first_unit) for site in layout.ranks]

    def write(self, factors: Tensor, scales: Sequence[float], pause: Pause, *, threads: int) -> None:
        left = iter(scales)
        for (_, pairs), places, units in zip(self._layout.by_site(factors), self._places, self._units, strict=True):
            if self._layout.has_unused_ranks:
                torch._foreach_zero_(units)
            torch._foreach_copy_(places, pieces_of(pairs, folded=self._folded))  # one call: the GIL is not taken again
            if scales:
                scaled = [places[index] for index in last_pieces(pairs, folded=self._folded)]
                torch._foreach_mul_(scaled, list(islice(left, len(pairs))))
            pause()


class _Part(NamedTuple):
    """What is written between two pauses: some transposes, once spans of memory are zeros."""

    transposes: slice
    zeros: NDArray[np.int64]  # [spans, 2]


class CompiledPlaces:
    """Addresses in the tables, for compiled copies, which also make of 16 bits what the tables have."""

    def __init__(
        self,
        layout: FactorLayout,
        tables: Mapping[SiteId, LowRankTable],
        first_unit: int,
        *,
        folded: bool,
        dtype: torch.dtype,
    ) -> None:
        """Takes tables on the CPU, and the dtype that factors will have."""
        from hotshoe.kernels.cpu.transposes import WIDTH

        self._dtypes = dtype, next(iter(tables.values())).a.dtype
        self._parts: list[_Part] = []
        transposes: list[tuple[int, ...]] = []
        pairs_of: list[int] = []  # of each transpose: 1 + which pair's B it is, 0 if it is of A
        num_pairs = 0
        for site, pairs in layout.by_site(torch.empty(layout.num_elements, dtype=dtype, device="meta")):
            first = len(transposes)
            places = places_of(layout.ranks[site], tables[site], first_unit, folded=folded)
            transposes += map(_transpose, pieces_of(pairs, folded=folded), places)
            pairs_of += [0] * len(places)
            for index in last_pieces(pairs, folded=folded):
                num_pairs += 1
                pairs_of[first + index] = num_pairs
            units = _units(layout, tables[site], first_unit)
            for part, whole in zip(units, (tables[site].a, tables[site].b), strict=True):
                ask_for_large_pages(part, whole)
            zeros = [(part.data_ptr(), part.nbytes // 8) for part in units if layout.has_unused_ranks]
            sizes = [place.numel() for place in places]
            self._parts += _parts(first, sizes, np.array(zeros, np.int64).reshape(-1, 2))
        self._transposes = np.array(transposes, np.int64).reshape(-1, WIDTH)
        self._pairs_of = np.array(pairs_of, np.int64)

    def write(self, factors: Tensor, scales: Sequence[float], pause: Pause, *, threads: int) -> None:
        from hotshoe.kernels.cpu.transposes import change_of, fill_zeros, transpose_all

        change = change_of(*self._dtypes, scaled=bool(scales))
        of_pairs = np.array([1.0, *scales], np.float32)
        scale = of_pairs[self._pairs_of] if scales else np.ones(len(self._pairs_of), np.float32)
        source = factors.data_ptr()
        left = iter(self._parts)  # each thread takes the next

        def write_parts(pause: Pause) -> None:
            for part in left:
                fill_zeros(part.zeros)
                transpose_all(change, self._transposes[part.transposes], scale[part.transposes], source)
                pause()

        if threads < 2 or factors.nbytes < _SHARED_BYTES:
            write_parts(pause)
            return
        with ThreadPoolExecutor(threads - 1, initializer=let_others_first) as pool:
            others = [pool.submit(write_parts, go_on) for _ in range(threads - 1)]
            write_parts(pause)
        for other in others:
            other.result()


def _transpose(piece: Tensor, place: Tensor) -> tuple[int, ...]:
    """As compiled copies take it: a piece of a flat tensor, which begins at 0, and where it goes."""
    size, target_size = piece.itemsize, place.itemsize
    rows, columns = place.shape
    source = int(piece.storage_offset()) * size, piece.stride(1) * size
    return (*source, place.data_ptr(), place.stride(0) * target_size, columns, rows)


def _parts(first: int, sizes: Sequence[int], zeros: NDArray[np.int64]) -> Iterator[_Part]:
    """A site's transposes, the first of which is `first`, by how much is written between two pauses."""
    begin, written = first, 0
    for index, size in enumerate(sizes, first):
        if written and written + size > _AT_ONCE:
            yield _Part(slice(begin, index), zeros)
            begin, written, zeros = index, 0, zeros[:0]
        written += size
    yield _Part(slice(begin, first + len(sizes)), zeros)


def _units(layout: FactorLayout, table: LowRankTable, first: int) -> list[Tensor]:
    """All of its units, unused ranks too: a GEMM may multiply those by 0, and whoever was there may have left NaN."""
    last = first + layout.num_units
    return [table.a[first:last], table.b[first * UNIT_RANK : last * UNIT_RANK]]
