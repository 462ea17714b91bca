"""What a linear's epilogue does, for a product that another kernel computed: scales, bias and low-rank updates."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hotshoe.kernels.low_rank_table import LowRankSegment, LowRankTable
from hotshoe.kernels.row_tiles import RowTiles
from hotshoe.kernels.site_updates import SiteUpdates, plan_updates
from hotshoe.kernels.triton.epilogue import apply_updates, epilogue
from hotshoe.kernels.triton.precision import dot_type

BLOCK_OUT = 64
BLOCK_ROWS = 16


def add_low_rank(y: Tensor, x: Tensor, table: LowRankTable, segments: Sequence[LowRankSegment]) -> None:
    """Adds to each segment's rows their low-rank terms, in place; other rows keep every bit.

    Args:
        y: [rows, out_features], columns contiguous.
        x: [rows, in_features], columns contiguous.
    Raises:
        ValueError: shapes disagree; y is untouched.
    """
    updates, tiles = plan_updates(table, segments, num_rows=x.shape[0])
    finish_linear(y, x, None, updates, tiles)


def finish_linear(
    y: Tensor, x: Tensor, bias: Tensor | None, updates: SiteUpdates, tiles: RowTiles, *, even_first: bool = False
) -> None:
    """Makes a product y = W x the linear's output, in place, as `site_updates` defines it.

    Args:
        y: [rows, out_features], columns contiguous.
        x: [rows, in_features], columns contiguous: the linear's unscaled input.
        bias: [out_features] or None.
        even_first: x's even columns come before its odd ones.
    Raises:
        ValueError: shapes disagree; y is untouched.
    """
    table, rows = updates.table, x.shape[0]
    if x.ndim != 2 or x.shape[1] != table.in_features or x.stride(1) != 1:
        raise ValueError(f"x: expected [rows, {table.in_features}], not {list(x.shape)}")
    if y.shape != (rows, table.b.shape[1]) or y.stride(1) != 1:
        raise ValueError(f"y: expected [{rows}, {table.b.shape[1]}], not {list(y.shape)}")
    if tiles.row_entries.shape[0] != rows:
        raise ValueError(f"tiles: planned for {tiles.row_entries.shape[0]} rows, not {rows}")
    if tiles.entries.shape[0] == 0 and bias is None:
        return
    after = epilogue(x, bias, updates, tiles, even_first=even_first)
    _finish[(triton.cdiv(rows, BLOCK_ROWS), triton.cdiv(y.shape[1], BLOCK_OUT))](
        y, tiles.row_entries, *after.tensors, rows, y.stride(0), *after.strides,
        OUT=y.shape[1], **after.constants, BLOCK_ROWS=BLOCK_ROWS, BLOCK_OUT=BLOCK_OUT, DOT=dot_type(table.b.dtype),
        num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _finish(
    y, row_entries, bias, b, shrunk, ends, entries, weights, ranks, units, outputs, biases, flags,
    rows, y_stride, b_stride, rank_stride, unit_stride, split_stride, vector_stride, flag_stride,
    OUT: tl.constexpr, UPDATES: tl.constexpr, VECTORS: tl.constexpr, TARGETS: tl.constexpr, MAX_RANK: tl.constexpr,
    SHRINK_SPLITS: tl.constexpr, TILE_ROWS: tl.constexpr, UNIT_RANK: tl.constexpr, HAS_OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    rows_from, columns_from = tl.program_id(0) * BLOCK_ROWS, tl.program_id(1) * BLOCK_OUT
    first = tl.load(row_entries + rows_from * 2)
    end = tl.load(row_entries + (tl.minimum(rows_from + BLOCK_ROWS, rows) - 1) * 2 + 1)
    if bias is None:
        if first == end:
            return
    row, column = rows_from + tl.arange(0, BLOCK_ROWS), columns_from + tl.arange(0, BLOCK_OUT)
    place = y + row.to(tl.int64)[:, None] * y_stride + column[None, :]
    mask = (row < rows)[:, None] & (column < OUT)[None, :]
    total = apply_updates(
        tl.load(place, mask=mask, other=0.0).to(tl.float32), first, end, row, columns_from,
        bias, b, shrunk, ends, entries, weights, ranks, units, outputs, biases, flags,
        b_stride, rank_stride, unit_stride, split_stride, vector_stride, flag_stride,
        OUT, UPDATES, VECTORS, TARGETS, MAX_RANK, SHRINK_SPLITS, TILE_ROWS, UNIT_RANK, HAS_OUTPUT, HAS_BIAS,
        BLOCK_OUT, DOT,
    )  # fmt: skip
    tl.store(place, total.to(y.dtype.element_ty), mask=mask)
