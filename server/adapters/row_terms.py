"""What a step's adapters add to its rows, as flat arrays that compiled code reads."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable
from hotshoe.registry.formats.base import NormId
from hotshoe.server.adapters.kept_arrays import KeptArrays
from hotshoe.server.adapters.placed_adapter import PlacedAdapter, SiteVectors
from hotshoe.server.adapters.row_copies import copy_addresses
from hotshoe.server.adapters.row_networks import RowNetworks
from hotshoe.server.adapters.row_prompts import prompt_addresses
from hotshoe.server.adapters.row_turns import RowTurns
from hotshoe.server.adapters.sites import MAX_TARGETS, SITE_INDEX, SITES, SiteId, SiteShape
from hotshoe.server.adapters.term_blocks import Segment, term_blocks

# As compiled code counts them.
NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "q_norm",
    "k_norm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)


class RowTerms:
    """The low-rank terms of a step's rows and, by segment, layer and site, vectors and all else that adapters have.

    Attributes:
        ranks: int64 [adapters, layers, sites, targets]; of `num_terms` terms, which adapter each is of, its first unit
            and whether it lies folded, int64; where blocks of terms that are computed together begin, and where the
            last one ends.
        addresses: the fields of a job that say all this.

    Args:
        segments: rows start … end−1 and their (adapter, weight) stack.
        vectors: of each segment, what its stack has at each site where it has any.
        tables: the low-rank tables, in bfloat16.
        shapes: of the base's sites.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        vectors: Sequence[Mapping[SiteId, SiteVectors]],
        *,
        tables: Mapping[SiteId, LowRankTable],
        shapes: Mapping[SiteId, SiteShape],
        num_layers: int,
        num_rows: int,
    ) -> None:
        self._kept = kept = KeptArrays()
        kept.keep(tables)
        terms = term_blocks(segments, lambda adapter: bool(adapter.ranks))
        self.num_terms = len(terms.rows)
        ranks = np.array([adapter.rank_table for adapter in terms.adapters], np.int64)
        folded = np.array([adapter.folded for adapter in terms.adapters], np.int64)
        units = max(-(-int(ranks.max(initial=0)) // UNIT_RANK), 1 + int(folded.max(initial=0)))  # both halves' sums
        self.shrunk_stride = units * UNIT_RANK * MAX_TARGETS
        self.ranks, self.block_starts, self.term_adapters = ranks, terms.starts, terms.places
        self.term_folded = folded[terms.places]
        self.term_units = np.array([adapter.first_unit for adapter in terms.adapters], np.int64)[terms.places]
        self.turns = RowTurns(segments, vectors, shapes=shapes, num_layers=num_layers, num_rows=num_rows, kept=kept)
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
            "folded": kept.address(folded),
            "tables": kept.address(_table_addresses(tables, num_layers)),
            "site_terms": kept.address(ranks.any(axis=(0, 3)) if len(ranks) else np.zeros((num_layers, len(SITES)))),
            "num_segments": len(segments),
            "row_segments": kept.address(_row_segments(segments, num_rows)),
            "norm_deltas": self._norm_deltas(segments, num_layers),
            **self.networks.addresses,
            **self.turns.addresses,
            **prompt_addresses(segments, num_layers, kept),
            **copy_addresses(segments, num_layers, kept),
        }
        for name, attribute in (("input_scales", "inputs"), ("output_scales", "output"), ("bias_deltas", "bias")):
            self.addresses[name] = self._vectors(vectors, attribute, num_layers)

    def _vectors(self, vectors: Sequence[Mapping[SiteId, SiteVectors]], attribute: str, num_layers: int) -> int:
        """The address of [segments, layers, sites] addresses, 0 if all of them are."""
        table = np.zeros((len(vectors), num_layers, len(SITES)), np.int64)
        for places, of_segment in zip(table, vectors, strict=True):
            for (layer, site), found in of_segment.items():
                vector = found.inputs[0] if attribute == "inputs" else getattr(found, attribute)
                places[layer, SITE_INDEX[site]] = self._kept.address_of(vector)
        return self._kept.address(table) if table.any() else 0

    def _norm_deltas(self, segments: Sequence[Segment], num_layers: int) -> int:
        """As `_vectors`, of [segments, layers, norms]."""
        table = np.zeros((len(segments), num_layers, len(NORMS)), np.int64)
        for places, (*_, stack) in zip(table, segments, strict=True):
            for norm, added in stack_norms(stack).items():
                if norm.layer is not None:  # the last is the head's
                    places[norm.layer, NORMS.index(norm.name)] = self._kept.address_of(added)
        return self._kept.address(table) if table.any() else 0


def stack_norms(stack: Sequence[tuple[PlacedAdapter, float]]) -> dict[NormId, Tensor]:
    """What a stack adds to norms' weights."""
    total: dict[NormId, Tensor] = {}
    for adapter, weight in stack:
        for norm, added in adapter.norms.items():
            part = added if weight == 1.0 else weight * added
            total[norm] = total[norm] + part if norm in total else part
    return total


def _row_segments(segments: Sequence[Segment], num_rows: int) -> NDArray[np.int64]:
    """[rows]: which segment each is of, −1 if of none."""
    rows = np.full(num_rows, -1)
    for index, (start, end, _) in enumerate(segments):
        rows[start:end] = index
    return rows


def _table_addresses(tables: Mapping[SiteId, LowRankTable], num_layers: int) -> NDArray[np.int64]:
    """[layers, sites, 2]: where a and b of each table lie."""
    addresses = np.zeros((num_layers, len(SITES), 2), np.int64)
    for (layer, site), table in tables.items():
        addresses[layer, SITE_INDEX[site]] = table.a.data_ptr(), table.b.data_ptr()
    return addresses
