"""Low-rank updates in Triton: rows in tiles of one sequence each, ranks as they are, counts read from device memory.

A tile's rows first shrink, x Aᵀ, once for each of its terms and targets; then they expand, either in `add_low_rank`
or in the epilogue of `nf4_linear`. Both loop to the term's own rank, and both leave a row alone that is not the tile's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable
from hotshoe.kernels.triton.precision import dot_type

TILE_ROWS = 16
BLOCK_IN = 64
BLOCK_OUT = 64


@dataclass(frozen=True, slots=True, eq=False)
class LowRankTiles:
    """A step's updates as tables on the device. A tile is up to 16 rows of a segment; each has one entry a term.

    The tables may be longer than `counts` says: the launch grid follows their length, the work follows the counts, so
    a captured graph serves any step that fits them.
    """

    counts: Tensor  # [2] int32: tiles, entries
    tiles: Tensor  # [tiles, 3] int32: first row, rows, first entry; a tile's entries end where the next one's begin
    entries: Tensor  # [entries, 3 + targets] int32: first row, rows, unit, ranks
    weights: Tensor  # [entries] float32
    row_entries: Tensor  # [rows, 2] int32: first and end of the entries of the row's tile
    max_rank: int  # a multiple of UNIT_RANK


def plan_tiles(
    segments: Sequence[LowRankSegment], *, num_rows: int, num_targets: int, device: torch.device
) -> LowRankTiles:
    """The tables of a step. Segments are ascending; those without terms, or with rank 0 everywhere, take nothing."""
    tiles: list[tuple[int, int, int]] = []
    entries: list[tuple[int, ...]] = []
    weights: list[float] = []
    row_entries: list[tuple[int, int]] = []
    rank = UNIT_RANK
    for segment in segments:
        terms = [term for term in segment.terms if max(term.ranks)]
        for start in range(segment.start, segment.end if terms else segment.start, TILE_ROWS):
            count, first = min(TILE_ROWS, segment.end - start), len(entries)
            tiles.append((start, count, first))
            for term in terms:
                entries.append((start, count, term.unit, *term.ranks))
                weights.append(term.weight)
                rank = max(rank, term.num_units * UNIT_RANK)
            row_entries += [(first, first)] * (start - len(row_entries)) + [(first, len(entries))] * count
    row_entries += [(len(entries), len(entries))] * (num_rows - len(row_entries))
    tiles.append((0, 0, len(entries)))

    def integers(values: Sequence[Any]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return LowRankTiles(
        counts=integers([len(tiles) - 1, len(entries)]),
        tiles=integers(tiles),
        entries=integers(entries).view(len(entries), 3 + num_targets),
        weights=torch.tensor(weights, dtype=torch.float32, device=device),
        row_entries=integers(row_entries).view(num_rows, 2),
        max_rank=rank,
    )


def shrink(x: Tensor, table: LowRankTable, tiles: LowRankTiles, *, even_first: bool = False) -> Tensor:
    """x Aᵀ of every entry: [entries, targets, TILE_ROWS, max_rank] float32; beyond its rows and ranks, anything.

    Args:
        even_first: x's even columns come before its odd ones.
    """
    targets = len(table.widths)
    shape = (tiles.entries.shape[0], targets, TILE_ROWS, tiles.max_rank)
    shrunk = torch.empty(shape, dtype=torch.float32, device=x.device)
    if shape[0]:
        _shrink[(shape[0], targets, tiles.max_rank // UNIT_RANK)](
            x, table.a, tiles.counts, tiles.entries, shrunk, x.stride(0),
            IN_FEATURES=table.in_features, TARGETS=targets, MAX_RANK=tiles.max_rank, TILE_ROWS=TILE_ROWS,
            UNIT_RANK=UNIT_RANK, BLOCK_IN=BLOCK_IN, EVEN_FIRST=even_first, DOT=dot_type(table.a.dtype), num_warps=4,
        )  # fmt: skip
    return shrunk


def add_low_rank(y: Tensor, x: Tensor, table: LowRankTable, segments: Sequence[LowRankSegment] | LowRankTiles) -> None:
    """Adds to each segment's rows their low-rank terms, in place; other rows keep every bit.

    Args:
        y: [rows, out_features], rows contiguous.
        x: [rows, in_features], rows contiguous.
        segments: or what `plan_tiles` made of them.
    Raises:
        ValueError: shapes disagree; y is untouched.
    """
    if x.ndim != 2 or x.shape[1] != table.in_features or x.stride(1) != 1:
        raise ValueError(f"x: expected [rows, {table.in_features}], not {list(x.shape)}")
    if y.shape != (x.shape[0], table.b.shape[1]) or y.stride(1) != 1:
        raise ValueError(f"y: expected [{x.shape[0]}, {table.b.shape[1]}], not {list(y.shape)}")
    targets = len(table.widths)
    if not isinstance(segments, LowRankTiles):
        segments = plan_tiles(segments, num_rows=x.shape[0], num_targets=targets, device=x.device)
    if segments.entries.shape[1] != 3 + targets:
        raise ValueError(f"segments: planned for {segments.entries.shape[1] - 3} targets, not {targets}")
    if segments.entries.shape[0] == 0:
        return
    _expand[(segments.tiles.shape[0] - 1, triton.cdiv(y.shape[1], BLOCK_OUT))](
        y, table.b, shrink(x, table, segments), target_ends(table.widths, y.device),
        segments.counts, segments.tiles, segments.entries, segments.weights, y.stride(0), table.b.stride(0),
        OUT=y.shape[1], TARGETS=targets, MAX_RANK=segments.max_rank, TILE_ROWS=TILE_ROWS, UNIT_RANK=UNIT_RANK,
        BLOCK_OUT=BLOCK_OUT, DOT=dot_type(table.b.dtype), num_warps=4,
    )  # fmt: skip


@lru_cache(maxsize=256)
def target_ends(widths: tuple[int, ...], device: torch.device) -> Tensor:
    """[targets + 1] int32: 0, and the end of each target's columns."""
    ends = [sum(widths[:i]) for i in range(len(widths) + 1)]
    return torch.tensor(ends, dtype=torch.int32, device=device)


@triton.jit
def _shrink(
    x, a, counts, entries, shrunk, x_stride,
    IN_FEATURES: tl.constexpr, TARGETS: tl.constexpr, MAX_RANK: tl.constexpr, TILE_ROWS: tl.constexpr,
    UNIT_RANK: tl.constexpr, BLOCK_IN: tl.constexpr, EVEN_FIRST: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    entry, target, unit = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if entry >= tl.load(counts + 1):
        return
    described = entries + entry * (3 + TARGETS)
    rank = tl.load(described + 3 + target)
    if unit * UNIT_RANK >= rank:
        return
    i, r = tl.arange(0, TILE_ROWS), tl.arange(0, UNIT_RANK)
    row = (tl.load(described) + i).to(tl.int64)
    of_tile = i < tl.load(described + 1)
    a += (tl.load(described + 2) + unit).to(tl.int64) * IN_FEATURES * TARGETS * UNIT_RANK + target * UNIT_RANK
    total = tl.zeros((TILE_ROWS, UNIT_RANK), tl.float32)
    for start in range(0, IN_FEATURES, BLOCK_IN):
        k = start + tl.arange(0, BLOCK_IN)
        inside = k < IN_FEATURES
        place = k
        if EVEN_FIRST:
            place = (k % 2) * (IN_FEATURES // 2) + k // 2
        rows = tl.load(x + row[:, None] * x_stride + place[None, :], mask=of_tile[:, None] & inside[None, :], other=0.0)
        factor = tl.load(a + k[:, None] * (TARGETS * UNIT_RANK) + r[None, :], mask=inside[:, None], other=0.0)
        total = tl.dot(rows.to(DOT), factor.to(DOT), acc=total, input_precision="ieee")
    out = shrunk + (entry * TARGETS + target) * TILE_ROWS * MAX_RANK + unit * UNIT_RANK
    tl.store(out + i[:, None] * MAX_RANK + r[None, :], total)


@triton.jit
def expand_entries(
    total, first, end, row, columns_from, b, shrunk, ends, entries, weights, b_stride,
    TARGETS: tl.constexpr, MAX_RANK: tl.constexpr, TILE_ROWS: tl.constexpr, UNIT_RANK: tl.constexpr,
    BLOCK_OUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """total [rows, BLOCK_OUT] plus those entries' parts, in order, each in the rows that are its own."""
    column = columns_from + tl.arange(0, BLOCK_OUT)
    r = tl.arange(0, UNIT_RANK)
    for entry in range(first, end):
        described = entries + entry * (3 + TARGETS)
        i = row - tl.load(described)
        own = (i >= 0) & (i < tl.load(described + 1))
        weight = tl.load(weights + entry)
        b_entry = b + tl.load(described + 2).to(tl.int64) * UNIT_RANK * b_stride
        for target in range(0, TARGETS):
            column_start, column_end = tl.load(ends + target), tl.load(ends + target + 1)
            if (column_start < columns_from + BLOCK_OUT) & (column_end > columns_from):
                inside = (column >= column_start) & (column < column_end)
                rank = tl.load(described + 3 + target)
                rows_from = shrunk + (entry * TARGETS + target) * TILE_ROWS * MAX_RANK
                part = tl.zeros(total.shape, tl.float32)
                for start in range(0, rank, UNIT_RANK):
                    of_rank = start + r < rank
                    rows = tl.load(
                        rows_from + i[:, None] * MAX_RANK + start + r[None, :],
                        mask=own[:, None] & of_rank[None, :], other=0.0,
                    )  # fmt: skip
                    factor = tl.load(
                        b_entry + (start + r[:, None]) * b_stride + column[None, :],
                        mask=of_rank[:, None] & inside[None, :], other=0.0,
                    )  # fmt: skip
                    part = tl.dot(rows.to(DOT), factor.to(DOT), acc=part, input_precision="ieee")
                # by choice and not by a factor of 0: another row's factors may be infinite
                total = tl.where(own[:, None] & inside[None, :], total + weight * part, total)
    return total


@triton.jit
def _expand(
    y, b, shrunk, ends, counts, tiles, entries, weights, y_stride, b_stride,
    OUT: tl.constexpr, TARGETS: tl.constexpr, MAX_RANK: tl.constexpr, TILE_ROWS: tl.constexpr,
    UNIT_RANK: tl.constexpr, BLOCK_OUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    tile = tl.program_id(0)
    if tile >= tl.load(counts):
        return
    i = tl.arange(0, TILE_ROWS)
    row = tl.load(tiles + tile * 3) + i
    columns_from = tl.program_id(1) * BLOCK_OUT
    total = expand_entries(
        tl.zeros((TILE_ROWS, BLOCK_OUT), tl.float32), tl.load(tiles + tile * 3 + 2), tl.load(tiles + tile * 3 + 5),
        row, columns_from, b, shrunk, ends, entries, weights, b_stride,
        TARGETS, MAX_RANK, TILE_ROWS, UNIT_RANK, BLOCK_OUT, DOT,
    )  # fmt: skip
    column = columns_from + tl.arange(0, BLOCK_OUT)
    place = y + row.to(tl.int64)[:, None] * y_stride + column[None, :]
    mask = (i < tl.load(tiles + tile * 3 + 1))[:, None] & (column < OUT)[None, :]
    before = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    tl.store(place, (before + total).to(y.dtype.element_ty), mask=mask)
