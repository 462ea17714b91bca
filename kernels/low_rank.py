"""Low-rank updates of a fused linear, each sequence its own: the tables, the checks, the dispatch.

A row only ever reads the factors of its own terms, by index: nothing is computed and then masked away, so what the
other rows are, and whether their factors are finite, cannot change a bit of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from hotshoe.kernels import reference_low_rank, segmented_low_rank
from hotshoe.kernels.cpu import low_rank as gathered_low_rank
from hotshoe.kernels.cpu.low_rank import GatheredRows
from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable, LowRankTerm

__all__ = [
    "UNIT_RANK",
    "LowRankKind",
    "LowRankPlan",
    "LowRankSegment",
    "LowRankTable",
    "LowRankTerm",
    "add_low_rank",
    "plan_low_rank",
]

LowRankKind = Literal["gathered", "segmented", "reference"]


@dataclass(frozen=True, slots=True)
class LowRankPlan:
    """Which rows take which terms; serves every table of that shape whose terms lie in the same units."""

    kind: LowRankKind
    in_features: int
    widths: tuple[int, ...]
    num_rows: int  # rows from 0 that it may touch
    segments: tuple[LowRankSegment, ...]
    gathered: GatheredRows | None


def plan_low_rank(
    segments: Sequence[LowRankSegment], *, in_features: int, widths: tuple[int, ...], kind: LowRankKind
) -> LowRankPlan:
    """Prepares what `add_low_rank` needs to know about a step, once for all tables of that shape.

    Args:
        segments: rows of one sequence each, ascending. Those without terms are skipped.
        kind: "gathered" is the CPU's fast way for rows that are one sequence each; "segmented" takes any segments on
            any device in the table's dtype; "reference" is the definition, in float32.

    Raises:
        ValueError: segments overlap or are empty, ranks do not match the targets, or "gathered" is asked for a
            segment of several rows.
    """
    end = 0
    for segment in segments:
        if not end <= segment.start < segment.end:
            raise ValueError(f"segments: expected ascending rows, not {segment.start}:{segment.end} after {end}")
        if kind == "gathered" and segment.end - segment.start != 1:
            raise ValueError(f"segments: a gathered plan takes single rows, not {segment.start}:{segment.end}")
        end = segment.end
        for term in segment.terms:
            if len(term.ranks) != len(widths) or min(term.ranks) < 0 or term.unit < 0:
                raise ValueError(f"terms: expected a unit and {len(widths)} ranks, not {term}")
            if term.folded and (kind != "segmented" or max(term.ranks) > UNIT_RANK // 2 or in_features % 2):
                raise ValueError(f"terms: {term} cannot lie folded, or only a segmented plan takes it")
    active = tuple(segment for segment in segments if segment.terms)
    gathered = None
    if kind == "gathered":
        gathered = gathered_low_rank.plan_rows(active, num_rows=end, in_features=in_features, widths=widths)
    return LowRankPlan(kind, in_features, widths, end, active, gathered)


def add_low_rank(y: Tensor, x: Tensor, table: LowRankTable, plan: LowRankPlan) -> None:
    """Adds to each segment's rows their low-rank terms, in place; other rows keep every bit.

        y[s:e, target] += weight · (x[s:e] Aᵀ) Bᵀ      for each term of the segment s:e and each target of its ranks

    Args:
        y: [rows, out_features] float32 or bfloat16, the fused linear's output.
        x: [rows, in_features] float32 or bfloat16, its unscaled input.

    Raises:
        ValueError: shapes disagree; y is untouched.
    """
    if plan.in_features != table.in_features or plan.widths != table.widths:
        raise ValueError(f"table: {table.in_features} → {table.widths} is not the plan's shape")
    if x.ndim != 2 or x.shape[1] != table.in_features or x.shape[0] < plan.num_rows:
        raise ValueError(f"x: expected [at least {plan.num_rows}, {table.in_features}], not {list(x.shape)}")
    if y.ndim != 2 or y.shape[0] != x.shape[0] or y.shape[1] != table.b.shape[1]:
        raise ValueError(f"y: expected [{x.shape[0]}, {table.b.shape[1]}], not {list(y.shape)}")
    if plan.gathered is not None:
        gathered_low_rank.add_rows(y, x, table, plan.gathered)
    elif plan.kind == "segmented":
        segmented_low_rank.add_low_rank(y, x, table, plan.segments)
    else:
        reference_low_rank.add_low_rank(y, x, table, plan.segments)
