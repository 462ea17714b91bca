"""A dense bfloat16 product on matrix tiles whose inputs keep 16 bits of their mantissa, for the output head.

An input is the sum of two bfloat16 numbers, high and low, and the weight is read once for both: few rows wait for
memory anyway. Results are float32 sums, so close logits are told apart without a second look.
"""

from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from hotshoe.kernels.cpu.amx import (
    BLOCK_BYTES,
    ROWS,
    SUM_BYTES,
    TILE_BYTES,
    clear_tile,
    load_tile,
    multiply_tiles,
    store_tile,
)
from hotshoe.kernels.cpu.vectors import (
    I32,
    I64,
    INTEGERS,
    LANES,
    load_floats,
    load_integers,
    prefetch,
    spread_integer,
    store_floats,
    store_integers,
    zeros,
)

COLUMNS = 32
FOUND_BYTES = 3 * 64  # of what `store_column` notes of a row
_DEPTH = 64  # inputs of a block
_AHEAD = 8  # blocks: tile loads alone keep memory waiting
_HIGH, _LOW, _INPUTS, _WEIGHTS = (0, 1), (2, 3), (4, 5), (6, 7)


def fits(weight: Tensor) -> bool:
    """Whether a weight [out_features, in_features] is whole blocks."""
    return weight.shape[0] % COLUMNS == 0 and weight.shape[1] % _DEPTH == 0


def pack(weight: Tensor) -> Tensor:
    """A bfloat16 weight that `fits`, as blocks: [out / 32, in / 64, 2048]."""
    columns, depth = weight.shape
    blocks = weight.to(torch.bfloat16).view(columns // COLUMNS, 2, 16, depth // _DEPTH, 2, 16, 2)
    return blocks.permute(0, 3, 4, 1, 5, 2, 6).reshape(columns // COLUMNS, depth // _DEPTH, -1).contiguous()


@intrinsic
def multiply_column(
    typing_context: Any, high: Any, low: Any, x_stride: Any, weights: Any, blocks: Any, sums: Any
) -> Any:
    """sums[2, 16, 32] float32 = high and low, [16, 64 · blocks] bfloat16, x_stride bytes apart, times one column."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        high, low, x_stride, weights, blocks, sums = arguments
        for tile in (*_HIGH, *_LOW):
            clear_tile(builder, tile)
        with cgutils.for_range(builder, blocks) as loop:
            block = builder.add(weights, builder.mul(loop.index, I64(BLOCK_BYTES)))
            inputs = builder.mul(loop.index, I64(2 * _DEPTH))
            for line in range(0, BLOCK_BYTES, 64):
                prefetch(builder, block, _AHEAD * BLOCK_BYTES + line)
            for depth_half in (0, 1):
                for tile, rows in zip(_INPUTS, (high, low), strict=True):
                    load_tile(builder, tile, builder.add(rows, inputs), 64 * depth_half, x_stride)
                for half, tile in enumerate(_WEIGHTS):
                    load_tile(builder, tile, block, TILE_BYTES * (2 * depth_half + half), I64(64))
                    multiply_tiles(builder, _HIGH[half], _INPUTS[0], tile)
                    multiply_tiles(builder, _LOW[half], _INPUTS[1], tile)
        for part, tiles in enumerate((_HIGH, _LOW)):
            for half, tile in enumerate(tiles):
                store_tile(builder, tile, sums, part * ROWS * SUM_BYTES + 64 * half, I64(SUM_BYTES))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 6), generate


@intrinsic
def store_column(
    typing_context: Any, sums: Any, out: Any, out_stride: Any, rows: Any, found: Any, found_stride: Any, column: Any
) -> Any:
    """out[rows, 32] float32, out_stride bytes apart, = the two parts of `sums` together.

    `found` is brought up to date, of each row found_stride bytes apart: float32 [16] the largest so far in each lane,
    int32 [16] its column, where out's first is `column`, and float32 [16] that stay 0 until a number is not finite.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, out, out_stride, rows, found, found_stride, column = arguments
        first = spread_integer(builder, builder.trunc(column, I32))
        with cgutils.for_range(builder, rows) as loop:
            parts = builder.add(sums, builder.mul(loop.index, I64(SUM_BYTES)))
            row = builder.add(out, builder.mul(loop.index, out_stride))
            noted = builder.add(found, builder.mul(loop.index, found_stride))
            best, places = load_floats(builder, noted), load_integers(builder, noted, 64)
            spoiled = load_floats(builder, noted, 128)
            for half in (0, 1):
                high = load_floats(builder, parts, 64 * half)
                low = load_floats(builder, parts, ROWS * SUM_BYTES + 64 * half)
                logits = builder.fadd(high, low)
                store_floats(builder, logits, row, 64 * half)
                larger = builder.fcmp_ordered(">", logits, best)
                here = builder.add(first, ir.Constant(INTEGERS, [16 * half + lane for lane in range(LANES)]))
                best, places = builder.select(larger, logits, best), builder.select(larger, here, places)
                spoiled = builder.fadd(spoiled, builder.fmul(logits, zeros()))
            store_floats(builder, best, noted)
            store_integers(builder, places, noted, 64)
            store_floats(builder, spoiled, noted, 128)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 7), generate
