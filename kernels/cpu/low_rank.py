"""The low-rank update for rows that are one sequence each: torch's embedding bags gather every row's own factors.

Both halves are weighted sums of table rows, which is what an embedding bag is, and torch's is vectorised, threaded
over bags and reads bfloat16 tables into float32 sums:

    shrink   t[row] = Σₖ x[row, k] · a[unit, k, :]        bag = (row, unit), in_features table rows, weights x[row]
    expand   y[row] += Σⱼ t[row, j] · b[j, :]             bag = (row, chunk of columns), rank table rows, weights t[row]

A bag is summed by one thread in the order of its indices, so its bits depend on nothing outside it: not on the other
rows, nor on how many they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import gcd

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable, LowRankTerm


@dataclass(frozen=True, slots=True)
class GatheredRows:
    """The indices of both halves for some rows; depends on the table's shape only."""

    num_rows: int  # x and y are read and written in rows 0 … num_rows−1 only
    out_rows: Tensor | None  # [active rows] int64, None if those are all
    bag_rows: Tensor | None  # [shrink bags] int64: the row of x behind each, None if they are the rows in order
    shrink_index: Tensor  # [shrink bags · in_features] int32
    shrink_offsets: Tensor  # [shrink bags + 1] int32
    picks: Tensor  # [picked] int64: flat positions in t, in the order of the expand bags
    weights: Tensor | None  # [picked] float32, None if all are 1
    expand_index: Tensor  # [picked] int32
    expand_offsets: Tensor  # [active rows · chunks + 1] int32
    chunk: int  # columns of an expand bag


def plan_rows(
    segments: Sequence[LowRankSegment], *, num_rows: int, in_features: int, widths: tuple[int, ...]
) -> GatheredRows | None:
    """Indices for segments of one row each, all of them with terms; None if there are none."""
    if not segments:
        return None
    chunk = gcd(*widths)
    rows = [segment.start for segment in segments]
    parts = [_row_indices(segment.terms, widths, chunk) for segment in segments]
    bags = [len(part.units) for part in parts]
    first_bag = [0, *accumulate(bags)][:-1]
    columns = len(widths) * UNIT_RANK
    units = np.concatenate([part.units for part in parts])
    shrink_index = units[:, None] * in_features + np.arange(in_features)
    picks = np.concatenate([part.picks + first * columns for part, first in zip(parts, first_bag, strict=True)])
    weights = np.concatenate([part.weights for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    one_bag_each = rows == list(range(num_rows)) and len(units) == num_rows
    return GatheredRows(
        num_rows=num_rows,
        out_rows=None if len(rows) == num_rows else torch.tensor(rows),
        bag_rows=None if one_bag_each else torch.from_numpy(np.repeat(rows, bags)),
        shrink_index=_int32(shrink_index.ravel()),
        shrink_offsets=_int32(np.arange(len(units) + 1) * in_features),
        picks=torch.from_numpy(picks),
        weights=None if (weights == 1.0).all() else torch.from_numpy(weights),
        expand_index=_int32(np.concatenate([part.expand for part in parts])),
        expand_offsets=_int32(np.concatenate([[0], counts.cumsum()])),
        chunk=chunk,
    )


def add_rows(y: Tensor, x: Tensor, table: LowRankTable, plan: GatheredRows) -> None:
    """y[rows] += the rows' terms. Sums in float32; t and the added rows are rounded to the table's dtype."""
    rows = x[: plan.num_rows] if plan.bag_rows is None else x.index_select(0, plan.bag_rows)
    sample = rows.to(table.a.dtype).reshape(-1)
    t = _weighted_bags(table.flat_a, plan.shrink_index, plan.shrink_offsets, sample)
    picked = t.view(-1).index_select(0, plan.picks)
    if plan.weights is not None:
        picked.mul_(plan.weights)
    delta = _weighted_bags(table.b.view(-1, plan.chunk), plan.expand_index, plan.expand_offsets, picked)
    delta = delta.view(-1, y.shape[1])
    if plan.out_rows is None:
        y[: plan.num_rows].add_(delta)
    else:
        y.index_add_(0, plan.out_rows, delta.to(y.dtype))


def _weighted_bags(table: Tensor, index: Tensor, offsets: Tensor, weights: Tensor) -> Tensor:
    """[bags, columns]: Σ weights · table[index] over each bag."""
    # weight, indices, offsets, scale_grad_by_freq, mode (0: sum), sparse, per_sample_weights, include_last_offset
    result: Tensor = torch.embedding_bag(table, index, offsets, False, 0, False, weights, True)[0]
    return result


@dataclass(frozen=True, slots=True)
class _RowIndices:
    """One row's share of a plan, as if it were the first row."""

    units: NDArray[np.int64]  # of its shrink bags
    picks: NDArray[np.int64]
    weights: NDArray[np.float32]
    expand: NDArray[np.int64]
    counts: NDArray[np.int64]  # indices of each expand bag


@lru_cache(maxsize=1024)
def _row_indices(terms: tuple[LowRankTerm, ...], widths: tuple[int, ...], chunk: int) -> _RowIndices:
    columns, chunks = len(widths) * UNIT_RANK, sum(widths) // chunk
    first_bags = [0, *accumulate(term.num_units for term in terms)]
    picks, weights, expand, counts = [], [], [], []
    first_chunk = 0
    for target, width in enumerate(widths):
        rank_indices = [np.arange(term.ranks[target]) for term in terms]
        target_picks = np.concatenate(
            [
                (first + i // UNIT_RANK) * columns + target * UNIT_RANK + i % UNIT_RANK
                for first, i in zip(first_bags, rank_indices, strict=False)
            ]
        )
        table_rows = np.concatenate([term.unit * UNIT_RANK + i for term, i in zip(terms, rank_indices, strict=True)])
        term_weights = np.repeat([term.weight for term in terms], [len(i) for i in rank_indices])
        number = width // chunk
        picks.append(np.tile(target_picks, number))
        weights.append(np.tile(term_weights, number))
        expand.append((table_rows * chunks + np.arange(first_chunk, first_chunk + number)[:, None]).ravel())
        counts.extend([len(target_picks)] * number)
        first_chunk += number
    return _RowIndices(
        units=np.concatenate([np.arange(term.unit, term.unit + term.num_units) for term in terms]),
        picks=np.concatenate(picks),
        weights=np.concatenate(weights).astype(np.float32),
        expand=np.concatenate(expand),
        counts=np.array(counts),
    )


def _int32(values: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(values.astype(np.int32))
