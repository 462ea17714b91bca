"""What the updates that a device holds are at one fused linear.

    y = (1 + Σ w (g − 1)) ∘ (W x') + bias + Σ w (d + B (A x))      over the updates of a row, w their weights

with x' = (1 + Σ w (s − 1)) ∘ x: s scales inputs, g outputs, d is added to the bias, A and B are low-rank factors.
Ranks, places and which of these an update has lie on the device, so that a captured graph serves whatever lies there
when it is replayed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable, LowRankTerm
from hotshoe.kernels.row_tiles import RowTiles, tile_rows

HAS_INPUT, HAS_OUTPUT, HAS_BIAS = 1, 2, 4


@dataclass(frozen=True, slots=True, eq=False)
class UpdateVectors:
    """Tables whose lines are read only where an update's flags say that it has them; elsewhere they hold anything."""

    inputs: Tensor  # [updates, targets, in_features] float32: scales of the input, by target
    outputs: Tensor  # [updates, out_features] float32: scales of the product
    biases: Tensor  # [updates, out_features] float32: what is added to the bias
    flags: Tensor  # [updates] int32: HAS_INPUT | HAS_OUTPUT | HAS_BIAS


@dataclass(frozen=True, slots=True, eq=False)
class SiteUpdates:
    """All updates that the device holds, at one fused linear. Tensors may be slices of larger ones."""

    table: LowRankTable
    ranks: Tensor  # [updates, targets] int32
    units: Tensor  # [updates, most units of one] int32: where in the table its ranks lie, unit by unit
    vectors: UpdateVectors | None = None

    @property
    def max_rank(self) -> int:
        return self.units.shape[1] * UNIT_RANK


def plan_updates(
    table: LowRankTable, segments: Sequence[LowRankSegment], *, num_rows: int
) -> tuple[SiteUpdates, RowTiles]:
    """Segments whose terms lie in a table, as updates: each different term is one."""
    device = table.a.device
    terms = list(dict.fromkeys(LowRankTerm(t.unit, t.ranks) for s in segments for t in s.terms if max(t.ranks)))
    numbers = {(term.unit, term.ranks): number for number, term in enumerate(terms)}
    most = max((term.num_units for term in terms), default=1)
    ranks = torch.zeros(max(1, len(terms)), len(table.widths), dtype=torch.int32)
    units = torch.zeros(max(1, len(terms)), most, dtype=torch.int32)
    for number, term in enumerate(terms):
        if len(term.ranks) != len(table.widths):
            raise ValueError(f"segments: a term has {len(term.ranks)} ranks, not {len(table.widths)}")
        ranks[number] = torch.tensor(term.ranks)
        units[number] = torch.arange(term.unit, term.unit + most)  # past its own, nothing is read
    rows = [(s.start, s.end, [(numbers[t.unit, t.ranks], t.weight) for t in s.terms if max(t.ranks)]) for s in segments]
    tiles = RowTiles.of(tile_rows(rows, num_rows), device)
    return SiteUpdates(table, ranks.to(device), units.to(device)), tiles
