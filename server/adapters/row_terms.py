"""What a step's adapters add to its rows, as flat arrays that compiled code reads."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable
from hotshoe.server.adapters.kept_arrays import KeptArrays
from hotshoe.server.adapters.placed_adapter import SiteVectors
from hotshoe.server.adapters.row_networks import RowNetworks
from hotshoe.server.adapters.sites import MAX_TARGETS, SITE_INDEX, SITES, SiteId
from hotshoe.server.adapters.term_blocks import Segment, term_blocks


class RowTerms:
    """The low-rank terms of a step's rows and, by row, layer and site, their vectors; their networks.

    Attributes:
        ranks: int64 [adapters, layers, sites, targets]; of `num_terms` terms, which adapter each is of and its first
            unit, int64; where blocks of terms that are computed together begin, and where the last one ends.
        addresses: the fields of a job that say all this.

    Args:
        segments: rows start … end−1 and their (adapter, weight) stack.
        vectors: of each segment, what its stack has at each site where it has any; one input scale for all targets.
        tables: the low-rank tables, in bfloat16.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        vectors: Sequence[Mapping[SiteId, SiteVectors]],
        *,
        tables: Mapping[SiteId, LowRankTable],
        num_layers: int,
        num_rows: int,
    ) -> None:
        self._kept = kept = KeptArrays()
        kept.keep(tables)
        terms = term_blocks(segments, lambda adapter: bool(adapter.ranks))
        self.num_terms = len(terms.rows)
        ranks = np.array([adapter.rank_table for adapter in terms.adapters], np.int64)
        units = -(-int(ranks.max(initial=0)) // UNIT_RANK)
        self.shrunk_stride = units * UNIT_RANK * MAX_TARGETS
        self.ranks, self.block_starts, self.term_adapters = ranks, terms.starts, terms.places
        self.term_units = np.array([adapter.first_unit for adapter in terms.adapters], np.int64)[terms.places]
        self.networks = RowNetworks(segments, num_layers, kept)
        self.addresses: dict[str, int] = {
            "num_terms": self.num_terms,
            "shrunk_stride": self.shrunk_stride,
            "num_blocks": len(terms.starts) - 1,
            "term_blocks": kept.address(terms.starts),
            "term_adapters": kept.address(terms.places),
            "term_rows": kept.address(terms.rows),
            "term_units": kept.address(self.term_units),
            "weights": kept.address(terms.weights, np.float32),
            "ranks": kept.address(ranks),
            "tables": kept.address(_table_addresses(tables, num_layers)),
            "site_terms": kept.address(ranks.any(axis=(0, 3)) if len(ranks) else np.zeros((num_layers, len(SITES)))),
            **self.networks.addresses,
        }
        for name, attribute in (("input_scales", "inputs"), ("output_scales", "output"), ("bias_deltas", "bias")):
            table = np.zeros((num_rows, num_layers, len(SITES)), np.int64)
            for (start, end, _), found in zip(segments, vectors, strict=True):
                self._fill(table[start:end], found, attribute)
            self.addresses[name] = kept.address(table) if table.any() else 0

    def _fill(self, rows: NDArray[np.int64], vectors: Mapping[SiteId, SiteVectors], attribute: str) -> None:
        """Puts a segment's addresses into its rows of [rows, layers, sites]."""
        for (layer, site), found in vectors.items():
            vector = found.inputs[0] if attribute == "inputs" else getattr(found, attribute)
            if vector is not None:
                rows[:, layer, SITE_INDEX[site]] = self._kept.address_of(vector)


def _table_addresses(tables: Mapping[SiteId, LowRankTable], num_layers: int) -> NDArray[np.int64]:
    """[layers, sites, 2]: where a and b of each table lie."""
    addresses = np.zeros((num_layers, len(SITES), 2), np.int64)
    for (layer, site), table in tables.items():
        addresses[layer, SITE_INDEX[site]] = table.a.data_ptr(), table.b.data_ptr()
    return addresses
