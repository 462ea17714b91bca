"""What a step's adapters add to its rows, as flat arrays that compiled code reads."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable
from hotshoe.server.adapters.placed_adapter import PlacedAdapter, SiteVectors
from hotshoe.server.adapters.sites import MAX_TARGETS, SITE_INDEX, SITES, SiteId


class RowTerms:
    """The low-rank terms of a step's rows and, by row, layer and site, their vectors.

    Attributes:
        ranks: int64 [adapters, layers, sites, targets]; of `num_terms` terms, which adapter each is of and its first
            unit, int64; where blocks of terms that are computed together begin, and where the last one ends.

    Args:
        segments: rows start … end−1 and their (adapter, weight) stack.
        vectors: of each segment, what its stack has at each site where it has any; one input scale for all targets.
        tables: the low-rank tables, in bfloat16.
    """

    def __init__(
        self,
        segments: Sequence[tuple[int, int, Sequence[tuple[PlacedAdapter, float]]]],
        vectors: Sequence[Mapping[SiteId, SiteVectors]],
        *,
        tables: Mapping[SiteId, LowRankTable],
        num_layers: int,
        num_rows: int,
    ) -> None:
        self._kept: list[object] = [tables]  # whatever `addresses` points into
        adapters = list({adapter: None for _, _, stack in segments for adapter, _ in stack if adapter.ranks})
        place = {adapter: index for index, adapter in enumerate(adapters)}
        # A row's terms keep the order of its stack, whatever the neighbours; rows of one adapter lie together.
        terms = [
            (position, place[adapter], row, adapter.first_unit, weight)
            for start, end, stack in segments
            for position, (adapter, weight) in enumerate((a, w) for a, w in stack if a.ranks)
            for row in range(start, end)
        ]
        terms.sort(key=itemgetter(0, 1))
        self.num_terms = len(terms)
        ranks = np.array([adapter.rank_table for adapter in adapters], np.int64)  # [adapters, layers, sites, targets]
        units = -(-int(ranks.max(initial=0)) // UNIT_RANK)
        self.shrunk_stride = units * UNIT_RANK * MAX_TARGETS
        self.ranks = ranks
        self.block_starts = blocks = _block_starts([term[:2] for term in terms])
        self.term_adapters = np.array([place for _, place, *_ in terms], np.int64)
        self.term_units = np.array([unit for *_, unit, _ in terms], np.int64)
        self.addresses: dict[str, int] = {
            "num_terms": self.num_terms,
            "shrunk_stride": self.shrunk_stride,
            "num_blocks": len(blocks) - 1,
            "term_blocks": self._keep(np.array(blocks)),
            "term_adapters": self._keep(self.term_adapters),
            "term_rows": self._keep(np.array([row for _, _, row, _, _ in terms])),
            "term_units": self._keep(self.term_units),
            "weights": self._keep(np.array([weight for *_, weight in terms]), np.float32),
            "ranks": self._keep(ranks),
            "tables": self._keep(_table_addresses(tables, num_layers)),
            "site_terms": self._keep(ranks.any(axis=(0, 3)) if len(ranks) else np.zeros((num_layers, len(SITES)))),
        }
        for name, attribute in (("input_scales", "inputs"), ("output_scales", "output"), ("bias_deltas", "bias")):
            table = np.zeros((num_rows, num_layers, len(SITES)), np.int64)
            for (start, end, _), found in zip(segments, vectors, strict=True):
                self._fill(table[start:end], found, attribute)
            self.addresses[name] = self._keep(table) if table.any() else 0

    def _keep(self, array: NDArray[np.generic], dtype: type = np.int64) -> int:
        """The address of the array as contiguous numbers of that type."""
        kept = np.ascontiguousarray(array, dtype)
        self._kept.append(kept)
        return kept.ctypes.data

    def _fill(self, rows: NDArray[np.int64], vectors: Mapping[SiteId, SiteVectors], attribute: str) -> None:
        """Puts a segment's addresses into its rows of [rows, layers, sites]."""
        for (layer, site), found in vectors.items():
            vector = found.inputs[0] if attribute == "inputs" else getattr(found, attribute)
            if vector is not None:
                rows[:, layer, SITE_INDEX[site]] = self._address(vector)

    def _address(self, vector: Tensor) -> int:
        kept = vector.to(torch.float32).contiguous()
        self._kept.append(kept)
        return kept.data_ptr()


def _block_starts(keys: Sequence[object]) -> list[int]:
    """Where blocks of 4, 2 or 1 consecutive terms with equal keys begin, and where the last one ends."""
    starts = [0]
    for _, group in groupby(keys):
        left = len(list(group))
        while left:
            size = 4 if left >= 4 else 2 if left >= 2 else 1
            starts.append(starts[-1] + size)
            left -= size
    return starts


def _table_addresses(tables: Mapping[SiteId, LowRankTable], num_layers: int) -> NDArray[np.int64]:
    """[layers, sites, 2]: where a and b of each table lie."""
    addresses = np.zeros((num_layers, len(SITES), 2), np.int64)
    for (layer, site), table in tables.items():
        addresses[layer, SITE_INDEX[site]] = table.a.data_ptr(), table.b.data_ptr()
    return addresses
