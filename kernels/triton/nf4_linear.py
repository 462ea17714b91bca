"""A linear on bitsandbytes' own NF4 bytes: weights are decoded in registers, never in memory.

The 32 bytes of a block hold its even columns in their high nibbles and its odd ones in the low, so a block is two dots,
one over x's even columns and one over its odd ones, and its scale multiplies their sum. Scales are nested: a byte per
block, decoded here. Few rows split the columns over more programs; their parts are added in a fixed order by a second
launch, and how many there are follows from the weight alone, so a row's bits do not depend on its neighbours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotshoe.kernels.row_tiles import RowTiles
from hotshoe.kernels.site_updates import SiteUpdates
from hotshoe.kernels.triton.epilogue import Epilogue, apply_updates, epilogue
from hotshoe.kernels.triton.nf4_lookup import look_up_nf4
from hotshoe.kernels.triton.precision import dot_type, interpreted
from hotshoe.kernels.weights import BLOCK, NESTED_BLOCK, NF4_VALUES, Nf4Weight

BLOCK_OUT = 64
PROGRAMS = 264  # as many fill a Hopper GPU's 132 multiprocessors twice
MAX_SPLITS = 8
PERMUTE = False  # which lookup is faster has to be measured


@dataclass(frozen=True, slots=True, eq=False)
class TritonNf4:
    """One or several NF4 weights of one input, their outputs side by side, every byte as it is stored."""

    shape: tuple[int, int]  # out_features, in_features
    codes: Tensor  # [out · in / 2] uint8
    quant_map: Tensor  # [16] float32
    absmax: Tensor  # [out · in / 64] uint8, or float32 if the scales are not nested
    absmax_code: Tensor | None  # [256] float32
    nested_absmax: Tensor | None  # float32: the parts' one after the other
    first_block: Tensor | None  # [out] int32: 256 · (its part's first nested scale) + the row's first block in its part
    offset: Tensor | None  # [out] float32: its part's
    permutable: bool  # its values are NF4's


def fits(weight: Nf4Weight) -> bool:
    """Whether every row begins with a block."""
    return weight.in_features % BLOCK == 0


def pack(parts: Sequence[Nf4Weight], device: torch.device) -> TritonNf4:
    """Joins weights of one input, each with its own nested scales.

    Raises:
        ValueError: rows do not begin with a block, or the parts differ in width, values, or kind of scales.
    """
    head = parts[0]
    for part in parts:
        if not fits(part) or part.in_features != head.in_features:
            raise ValueError(f"weight: {list(part.shape)} does not fit blocks of {BLOCK} in a row")
        same = torch.equal(part.quant_map, head.quant_map) and part.absmax.dtype == head.absmax.dtype
        if head.absmax_code is not None:
            same = same and part.absmax_code is not None and torch.equal(part.absmax_code, head.absmax_code)
        if not same:
            raise ValueError("weight: parts of one linear differ in their values or in the kind of their scales")
    out_features = sum(part.out_features for part in parts)
    codes, absmax = torch.cat([part.codes for part in parts]), torch.cat([part.absmax for part in parts])
    shape = out_features, head.in_features
    permutable = torch.equal(head.quant_map.cpu().bfloat16(), NF4_VALUES.bfloat16())
    tensors = codes.to(device), head.quant_map.to(device), absmax.to(device)
    if head.absmax_code is None:
        return TritonNf4(shape, *tensors, None, None, None, None, permutable)
    nested, first_block, offset = (tensor.to(device) for tensor in _nested_scales(parts))
    return TritonNf4(shape, *tensors, head.absmax_code.to(device), nested, first_block, offset, permutable)


def _nested_scales(parts: Sequence[Nf4Weight]) -> tuple[Tensor, Tensor, Tensor]:
    nested, blocks, offsets, start = [], [], [], 0
    for part in parts:
        assert part.nested_absmax is not None
        rows = torch.arange(part.out_features, dtype=torch.int32, device=part.codes.device)
        blocks.append(rows * (part.in_features // BLOCK) + start * NESTED_BLOCK)
        offsets.append(torch.full_like(rows, part.offset, dtype=torch.float32))
        nested.append(part.nested_absmax)
        start += part.nested_absmax.shape[0]
    return torch.cat(nested), torch.cat(blocks), torch.cat(offsets)


def num_splits(shape: tuple[int, int]) -> int:
    """Over how many programs the columns of a weight of that shape are split."""
    programs: int = triton.cdiv(shape[0], BLOCK_OUT)
    return max(1, min(MAX_SPLITS, shape[1] // BLOCK, PROGRAMS // programs))


def nf4_linear(
    x: Tensor,
    weight: TritonNf4 | Nf4Weight,
    bias: Tensor | None = None,
    updates: SiteUpdates | None = None,
    tiles: RowTiles | None = None,
    *,
    even_first: bool = False,
    unscaled: Tensor | None = None,
    permute: bool | None = None,
) -> Tensor:
    """x Wᵀ + bias, with the rows' updates as `site_updates` defines them: [rows, out_features] in x's dtype.

    Args:
        x: [rows, in_features], columns contiguous; float32, float16 or bfloat16.
        weight: as `pack` made it; one that is not packed is packed on the way.
        bias: [out_features].
        updates, tiles: both or neither. Input scales are none of its business:
        unscaled: what the low-rank factors multiply where x was scaled; as x, which it is if left out.
        even_first: x's even columns come before its odd ones, as `rms_norm` and `silu_mul` write on request.
        permute: whether values are permuted out of registers rather than read from a table; where left out,
            `PERMUTE` says. Needs a GPU, bfloat16 and NF4's own values.
    Raises:
        ValueError: shapes disagree.
    """
    if isinstance(weight, Nf4Weight):
        weight = pack([weight], x.device)
    permute = PERMUTE if permute is None else permute
    permute = permute and weight.permutable and x.dtype == torch.bfloat16 and not interpreted()
    out_features, in_features = weight.shape
    if x.ndim != 2 or x.shape[1] != in_features or x.stride(1) != 1:
        raise ValueError(f"x: expected [rows, {in_features}] with contiguous columns, not {list(x.shape)}")
    if bias is not None and bias.shape != (out_features,):
        raise ValueError(f"bias: expected [{out_features}], not {list(bias.shape)}")
    if (updates is None) != (tiles is None):
        raise ValueError("updates, tiles: expected both or neither")
    if updates is not None and (updates.table.in_features, updates.table.b.shape[1]) != (in_features, out_features):
        raise ValueError(f"updates: {updates.table.in_features} → {updates.table.widths} is not {list(weight.shape)}")
    if tiles is not None and tiles.row_entries.shape[0] != x.shape[0]:
        raise ValueError(f"tiles: planned for {tiles.row_entries.shape[0]} rows, not {x.shape[0]}")
    if unscaled is not None and (unscaled.shape != x.shape or unscaled.stride(1) != 1):
        raise ValueError(f"unscaled: expected {list(x.shape)}, not {list(unscaled.shape)}")
    after = epilogue(x if unscaled is None else unscaled, bias, updates, tiles, even_first=even_first)
    row_entries = None if tiles is None else tiles.row_entries
    return _launch(x, weight, after, row_entries, {"EVEN_FIRST": even_first, "PERMUTE": permute})


def _launch(x: Tensor, weight: TritonNf4, after: Epilogue, row_entries: Tensor | None, how: dict[str, bool]) -> Tensor:
    rows, (out_features, in_features) = x.shape[0], weight.shape
    block_rows = 16 if rows <= 16 else 32 if rows <= 32 else 64
    splits = num_splits(weight.shape)
    grid = triton.cdiv(out_features, BLOCK_OUT), triton.cdiv(rows, block_rows), splits
    y = torch.empty((rows, out_features), dtype=x.dtype, device=x.device)
    parts = torch.empty((splits, rows, out_features), dtype=torch.float32, device=x.device) if splits > 1 else y
    _nf4_linear[grid](
        x, weight.codes, weight.quant_map, weight.absmax, weight.absmax_code, weight.nested_absmax,
        weight.first_block, weight.offset, parts, row_entries, *after.tensors, rows, x.stride(0), *after.strides,
        OUT=out_features, IN=in_features, SPLITS=splits, BLOCK_ROWS=block_rows, BLOCK_OUT=BLOCK_OUT,
        NESTED=weight.absmax_code is not None, **how, **after.constants, DOT=dot_type(x.dtype),
        num_warps=4,
    )  # fmt: skip
    if splits > 1:
        _add_parts[grid[:2]](
            parts, y, row_entries, *after.tensors, rows, *after.strides,
            OUT=out_features, SPLITS=splits, BLOCK_ROWS=block_rows, BLOCK_OUT=BLOCK_OUT,
            **after.constants, DOT=dot_type(x.dtype), num_warps=4,
        )  # fmt: skip
    return y


@triton.jit(do_not_specialize=["rows"])  # else one row, or 16, compile kernels of their own
def _nf4_linear(
    x, codes, quant_map, absmax, absmax_code, nested_absmax, first_block, offset, out, row_entries,
    bias, b, shrunk, ends, entries, weights, ranks, units, outputs, biases, flags,
    rows, x_stride, b_stride, rank_stride, unit_stride, split_stride, vector_stride, flag_stride,
    OUT: tl.constexpr, IN: tl.constexpr, SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
    NESTED: tl.constexpr, EVEN_FIRST: tl.constexpr, PERMUTE: tl.constexpr, UPDATES: tl.constexpr, VECTORS: tl.constexpr,
    TARGETS: tl.constexpr, MAX_RANK: tl.constexpr, SHRINK_SPLITS: tl.constexpr, TILE_ROWS: tl.constexpr,
    UNIT_RANK: tl.constexpr, HAS_OUTPUT: tl.constexpr, HAS_BIAS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    columns_from, rows_from, split = tl.program_id(0) * BLOCK_OUT, tl.program_id(1) * BLOCK_ROWS, tl.program_id(2)
    n, m, byte = columns_from + tl.arange(0, BLOCK_OUT), rows_from + tl.arange(0, BLOCK_ROWS), tl.arange(0, 32)
    of_out, of_rows = n < OUT, m < rows
    blocks: tl.constexpr = IN // 64
    x_step: tl.constexpr = 32 if EVEN_FIRST else 64
    x_odd: tl.constexpr = IN // 2 if EVEN_FIRST else 1
    x_even = x + m.to(tl.int64)[None, :] * x_stride + byte[:, None] * (1 if EVEN_FIRST else 2)
    code = codes + n.to(tl.int64)[:, None] * (IN // 2) + byte[None, :]
    if NESTED:
        first = tl.load(first_block + n, mask=of_out, other=0)
        shift = tl.load(offset + n, mask=of_out, other=0.0)
    total = tl.zeros((BLOCK_OUT, BLOCK_ROWS), tl.float32)
    for block in range(split, blocks, SPLITS):
        pair = tl.load(code + block * 32, mask=of_out[:, None], other=0)
        even = tl.load(x_even + block * x_step, mask=of_rows[None, :], other=0.0)
        odd = tl.load(x_even + block * x_step + x_odd, mask=of_rows[None, :], other=0.0)
        if PERMUTE:
            high, low = look_up_nf4(pair)
        else:
            pair = pair.to(tl.int32)
            high, low = tl.load(quant_map + (pair >> 4)), tl.load(quant_map + (pair & 15))
        part = tl.dot(high.to(DOT), even.to(DOT), input_precision="ieee")
        part = tl.dot(low.to(DOT), odd.to(DOT), acc=part, input_precision="ieee")
        scale = tl.load(absmax + n * blocks + block, mask=of_out, other=0)
        if NESTED:
            outer = tl.load(nested_absmax + ((first + block) >> 8), mask=of_out, other=0.0)
            scale = tl.load(absmax_code + scale.to(tl.int32)) * outer + shift
        total += part * scale[:, None]
    result = tl.trans(total)
    if SPLITS == 1:
        start, end = 0, 0
        if UPDATES:
            start = tl.load(row_entries + rows_from * 2)
            end = tl.load(row_entries + (tl.minimum(rows_from + BLOCK_ROWS, rows) - 1) * 2 + 1)
        result = apply_updates(
            result, start, end, m, columns_from,
            bias, b, shrunk, ends, entries, weights, ranks, units, outputs, biases, flags,
            b_stride, rank_stride, unit_stride, split_stride, vector_stride, flag_stride,
            OUT, UPDATES, VECTORS, TARGETS, MAX_RANK, SHRINK_SPLITS, TILE_ROWS, UNIT_RANK, HAS_OUTPUT, HAS_BIAS,
            BLOCK_OUT, DOT,
        )  # fmt: skip
    place = out + (split.to(tl.int64) * rows + m)[:, None] * OUT + n[None, :]
    tl.store(place, result.to(out.dtype.element_ty), mask=of_rows[:, None] & of_out[None, :])


@triton.jit(do_not_specialize=["rows"])
def _add_parts(
    parts, y, row_entries, bias, b, shrunk, ends, entries, weights, ranks, units, outputs, biases, flags,
    rows, b_stride, rank_stride, unit_stride, split_stride, vector_stride, flag_stride,
    OUT: tl.constexpr, SPLITS: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr,
    UPDATES: tl.constexpr, VECTORS: tl.constexpr, TARGETS: tl.constexpr, MAX_RANK: tl.constexpr,
    SHRINK_SPLITS: tl.constexpr, TILE_ROWS: tl.constexpr, UNIT_RANK: tl.constexpr, HAS_OUTPUT: tl.constexpr,
    HAS_BIAS: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    columns_from, rows_from = tl.program_id(0) * BLOCK_OUT, tl.program_id(1) * BLOCK_ROWS
    n, m = columns_from + tl.arange(0, BLOCK_OUT), rows_from + tl.arange(0, BLOCK_ROWS)
    mask = (m < rows)[:, None] & (n < OUT)[None, :]
    place = m.to(tl.int64)[:, None] * OUT + n[None, :]
    total = tl.zeros((BLOCK_ROWS, BLOCK_OUT), tl.float32)
    for split in range(0, SPLITS):
        total += tl.load(parts + place + split * rows.to(tl.int64) * OUT, mask=mask, other=0.0)
    start, end = 0, 0
    if UPDATES:
        start = tl.load(row_entries + rows_from * 2)
        end = tl.load(row_entries + (tl.minimum(rows_from + BLOCK_ROWS, rows) - 1) * 2 + 1)
    total = apply_updates(
        total, start, end, m, columns_from,
        bias, b, shrunk, ends, entries, weights, ranks, units, outputs, biases, flags,
        b_stride, rank_stride, unit_stride, split_stride, vector_stride, flag_stride,
        OUT, UPDATES, VECTORS, TARGETS, MAX_RANK, SHRINK_SPLITS, TILE_ROWS, UNIT_RANK, HAS_OUTPUT, HAS_BIAS,
        BLOCK_OUT, DOT,
    )  # fmt: skip
    tl.store(y + place, total.to(y.dtype.element_ty), mask=mask)
