"""What `low_rank.add_low_rank` means, in plain torch: the oracle, and what the reference backend runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hotshoe.kernels.low_rank_table import LowRankSegment, LowRankTable


def add_low_rank(y: Tensor, x: Tensor, table: LowRankTable, segments: Sequence[LowRankSegment]) -> None:
    """Segment by segment, term by term, target by target, in float32 (float64 if y is)."""
    exact = torch.float64 if y.dtype == torch.float64 else torch.float32
    for segment in segments:
        rows = x[segment.start : segment.end].to(exact)
        for term in segment.terms:
            for target, rank in enumerate(term.ranks):
                if not rank:
                    continue
                a = table.a_of(term.unit, target, rank).to(exact)
                b = table.b_of(term.unit, target, rank).to(exact)
                y[segment.start : segment.end, table.columns[target]] += term.weight * (rows @ a) @ b
