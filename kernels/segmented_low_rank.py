"""The low-rank update for rows that many share a sequence, prompts above all: two GEMMs a segment, on any device."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable, LowRankTerm


def add_low_rank(y: Tensor, x: Tensor, table: LowRankTable, segments: Sequence[LowRankSegment]) -> None:
    """As the reference, in the table's dtype with float32 accumulation inside each GEMM."""
    for segment in segments:
        rows = x[segment.start : segment.end].to(table.a.dtype)
        out = y[segment.start : segment.end]
        for term in segment.terms:
            for target, shrunk in _shrink(rows, table, term):
                b = table.b_of(term.unit, target, shrunk.shape[1])
                out[:, table.columns[target]].add_(shrunk @ b, alpha=term.weight)


def _shrink(rows: Tensor, table: LowRankTable, term: LowRankTerm) -> list[tuple[int, Tensor]]:
    """rows Aᵀ, [rows, rank], for each target that the term has; one GEMM for the targets of a unit together."""
    targets, count = len(table.widths), term.num_units
    if term.folded:
        half = rows.shape[1] // 2
        both = rows.reshape(-1, 2, half) @ table.a[term.unit, :half]  # [rows, half of the inputs, columns]
        first, second = both.view(-1, 2, targets, 2, UNIT_RANK // 2).unbind(1)
        shrunk = first[:, :, 0] + second[:, :, 1]
    elif count == 1:
        shrunk = (rows @ table.a[term.unit]).view(-1, targets, UNIT_RANK)
    else:
        units = torch.matmul(rows, table.a[term.unit : term.unit + count])  # [units, rows, targets · UNIT_RANK]
        shrunk = units.view(count, -1, targets, UNIT_RANK).permute(1, 2, 0, 3).flatten(2)
    return [(target, shrunk[:, target, :rank]) for target, rank in enumerate(term.ranks) if rank]
