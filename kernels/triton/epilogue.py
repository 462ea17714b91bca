"""The epilogue of a linear: its rows' updates, as `kernels.site_updates` defines them, applied in registers."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK
from hotshoe.kernels.row_tiles import TILE_ROWS, RowTiles
from hotshoe.kernels.site_updates import HAS_BIAS, HAS_OUTPUT, SiteUpdates
from hotshoe.kernels.triton.precision import dot_type

BLOCK_IN = 64
SPLIT_COLUMNS = 512  # input columns of one program of `shrink`: few adapters still fill the GPU
MAX_SPLITS = 16


def num_splits(in_features: int) -> int:
    """Over how many programs `shrink` splits the columns of that many inputs; nothing else decides it."""
    return max(1, min(MAX_SPLITS, in_features // SPLIT_COLUMNS))


def shrink(x: Tensor, updates: SiteUpdates, tiles: RowTiles, *, even_first: bool = False) -> Tensor:
    """x Aᵀ of every entry in parts to be added: [splits, entries, targets, TILE_ROWS, max_rank] float32.

    Beyond an entry's rows and ranks it holds anything.

    Args:
        even_first: x's even columns come before its odd ones.
    """
    table, entries = updates.table, tiles.entries.shape[0]
    targets, splits = len(table.widths), num_splits(table.in_features)
    shrunk = torch.empty((splits, entries, targets, TILE_ROWS, updates.max_rank), dtype=torch.float32, device=x.device)
    if entries:
        _shrink[(entries, targets, splits)](  # a program for each unit would be a thousand that find none
            x, table.a, tiles.count, tiles.entries, updates.ranks, updates.units, shrunk,
            entries, x.stride(0), updates.ranks.stride(0), updates.units.stride(0),
            IN_FEATURES=table.in_features, TARGETS=targets, MAX_RANK=updates.max_rank, TILE_ROWS=TILE_ROWS,
            UNIT_RANK=UNIT_RANK, BLOCK_IN=BLOCK_IN, SPLITS=splits, EVEN_FIRST=even_first, DOT=dot_type(table.a.dtype),
            num_warps=4,
        )  # fmt: skip
    return shrunk


@dataclass(frozen=True, slots=True)
class Epilogue:
    """What a kernel passes on to `apply_updates`; without updates, none of it is read."""

    tensors: tuple[Tensor | None, ...]
    strides: tuple[int, ...]
    constants: dict[str, Any]


def epilogue(
    x: Tensor, bias: Tensor | None, updates: SiteUpdates | None, tiles: RowTiles | None, *, even_first: bool = False
) -> Epilogue:
    """Runs `shrink` for rows x, and gathers what follows a linear of them."""
    constants: dict[str, Any] = {
        "TILE_ROWS": TILE_ROWS, "UNIT_RANK": UNIT_RANK, "HAS_OUTPUT": HAS_OUTPUT, "HAS_BIAS": HAS_BIAS
    }  # fmt: skip
    if updates is None or tiles is None or tiles.entries.shape[0] == 0:
        nothing = {"UPDATES": False, "VECTORS": False, "TARGETS": 0, "MAX_RANK": 0, "SHRINK_SPLITS": 0}
        return Epilogue((bias, *(None,) * 10), (0,) * 6, constants | nothing)
    table, vectors = updates.table, updates.vectors
    shrunk = shrink(x, updates, tiles, even_first=even_first)
    outputs, biases, flags = (None,) * 3 if vectors is None else (vectors.outputs, vectors.biases, vectors.flags)
    tensors = (
        bias, table.b, shrunk, target_ends(table.widths, x.device), tiles.entries, tiles.weights, updates.ranks,
         updates.units, outputs, biases, flags,
    )  # fmt: skip
    strides = (
        table.b.stride(0), updates.ranks.stride(0), updates.units.stride(0), shrunk.stride(0),
        0 if outputs is None else outputs.stride(0), 0 if flags is None else flags.stride(0),
    )  # fmt: skip
    constants |= {
        "UPDATES": True, "VECTORS": vectors is not None, "TARGETS": len(table.widths), "MAX_RANK": updates.max_rank,
        "SHRINK_SPLITS": shrunk.shape[0],
    }  # fmt: skip
    return Epilogue(tensors, strides, constants)


@lru_cache(maxsize=256)
def target_ends(widths: tuple[int, ...], device: torch.device) -> Tensor:
    """[targets + 1] int32: 0, and the end of each target's columns."""
    ends = [sum(widths[:i]) for i in range(len(widths) + 1)]
    return torch.tensor(ends, dtype=torch.int32, device=device)


@triton.jit(do_not_specialize=["num_entries"])
def _shrink(
    x, a, count, entries, ranks, units, shrunk, num_entries, x_stride, rank_stride, unit_stride,
    IN_FEATURES: tl.constexpr, TARGETS: tl.constexpr, MAX_RANK: tl.constexpr, TILE_ROWS: tl.constexpr,
    UNIT_RANK: tl.constexpr, BLOCK_IN: tl.constexpr, SPLITS: tl.constexpr, EVEN_FIRST: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    entry, target, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if entry >= tl.load(count):
        return
    update = tl.load(entries + entry * 3 + 2)
    rank = tl.load(ranks + update * rank_stride + target)
    i, r = tl.arange(0, TILE_ROWS), tl.arange(0, UNIT_RANK)
    row = (tl.load(entries + entry * 3) + i).to(tl.int64)
    of_tile = i < tl.load(entries + entry * 3 + 1)
    out = shrunk + ((split.to(tl.int64) * num_entries + entry) * TARGETS + target) * TILE_ROWS * MAX_RANK
    for first in range(0, rank, UNIT_RANK):
        unit = tl.load(units + update * unit_stride + first // UNIT_RANK).to(tl.int64)
        from_a = a + unit * IN_FEATURES * TARGETS * UNIT_RANK + target * UNIT_RANK
        total = tl.zeros((TILE_ROWS, UNIT_RANK), tl.float32)
        for start in range(split * BLOCK_IN, IN_FEATURES, SPLITS * BLOCK_IN):
            k = start + tl.arange(0, BLOCK_IN)
            inside = k < IN_FEATURES
            column = k
            if EVEN_FIRST:
                column = (k % 2) * (IN_FEATURES // 2) + k // 2
            rows = tl.load(
                x + row[:, None] * x_stride + column[None, :], mask=of_tile[:, None] & inside[None, :], other=0.0
            )
            factor = tl.load(from_a + k[:, None] * (TARGETS * UNIT_RANK) + r[None, :], mask=inside[:, None], other=0.0)
            total = tl.dot(rows.to(DOT), factor.to(DOT), acc=total, input_precision="ieee")
        tl.store(out + i[:, None] * MAX_RANK + first + r[None, :], total)


@triton.jit
def apply_updates(
    total, first, end, row, columns_from, bias, b, shrunk, ends, entries, weights, ranks, units, outputs, biases, flags,
    b_stride, rank_stride, unit_stride, split_stride, vector_stride, flag_stride,
    OUT: tl.constexpr, UPDATES: tl.constexpr, VECTORS: tl.constexpr, TARGETS: tl.constexpr, MAX_RANK: tl.constexpr,
    SHRINK_SPLITS: tl.constexpr, TILE_ROWS: tl.constexpr, UNIT_RANK: tl.constexpr, HAS_OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr, BLOCK_OUT: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """total [rows, BLOCK_OUT], a product, made the linear's output: each row takes the entries that are its own.

    By choice and never by a factor of 0: another row's numbers may be infinite.
    """
    column = columns_from + tl.arange(0, BLOCK_OUT)
    of_out = column < OUT
    if VECTORS:
        scale = tl.full(total.shape, 1.0, tl.float32)
        for entry in range(first, end):
            update = tl.load(entries + entry * 3 + 2).to(tl.int64)
            if (tl.load(flags + update * flag_stride) & HAS_OUTPUT) != 0:
                i = row - tl.load(entries + entry * 3)
                own = (i >= 0) & (i < tl.load(entries + entry * 3 + 1))
                g = tl.load(outputs + update * vector_stride + column, mask=of_out, other=1.0)
                more = scale + tl.load(weights + entry) * (g[None, :] - 1.0)
                scale = tl.where(own[:, None], more, scale)
        total = total * scale
    if bias is not None:
        total += tl.load(bias + column, mask=of_out, other=0.0).to(tl.float32)[None, :]
    if UPDATES:
        r = tl.arange(0, UNIT_RANK)
        for entry in range(first, end):
            update = tl.load(entries + entry * 3 + 2).to(tl.int64)
            i = row - tl.load(entries + entry * 3)
            own = (i >= 0) & (i < tl.load(entries + entry * 3 + 1))
            weight = tl.load(weights + entry)
            if VECTORS:
                if (tl.load(flags + update * flag_stride) & HAS_BIAS) != 0:
                    d = tl.load(biases + update * vector_stride + column, mask=of_out, other=0.0)
                    total = tl.where(own[:, None], total + weight * d[None, :], total)
            for target in range(0, TARGETS):
                column_start, column_end = tl.load(ends + target), tl.load(ends + target + 1)
                rank = tl.load(ranks + update * rank_stride + target)
                if (column_start < columns_from + BLOCK_OUT) & (column_end > columns_from) & (rank > 0):
                    inside = (column >= column_start) & (column < column_end)
                    rows_from = shrunk + (entry * TARGETS + target) * TILE_ROWS * MAX_RANK
                    part = tl.zeros(total.shape, tl.float32)
                    for start in range(0, rank, UNIT_RANK):
                        of_rank = start + r < rank
                        here = own[:, None] & of_rank[None, :]
                        rows = tl.zeros((total.shape[0], UNIT_RANK), tl.float32)
                        for split in range(0, SHRINK_SPLITS):
                            place = rows_from + split * split_stride + i[:, None] * MAX_RANK + start + r[None, :]
                            rows += tl.load(place, mask=here, other=0.0)
                        unit = tl.load(units + update * unit_stride + start // UNIT_RANK).to(tl.int64)
                        factor = tl.load(
                            b + (unit * UNIT_RANK + r[:, None]) * b_stride + column[None, :],
                            mask=of_rank[:, None] & inside[None, :], other=0.0,
                        )  # fmt: skip
                        part = tl.dot(rows.to(DOT), factor.to(DOT), acc=part, input_precision="ieee")
                    total = tl.where(own[:, None] & inside[None, :], total + weight * part, total)
    return total
