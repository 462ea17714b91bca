"""A dense bfloat16 product on matrix tiles whose inputs keep 16 bits of their mantissa, for the output head.

An input is the sum of two bfloat16 numbers, high and low, and the weight is read once for both: few rows wait for
memory anyway. Results are float32 sums, so close logits are told apart without a second look.
"""

from typing import Any

import torch
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
from hotshoe.kernels.cpu.vectors import I64, load_floats, prefetch, store_floats

COLUMNS = 32
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
def store_column(typing_context: Any, sums: Any, out: Any, out_stride: Any, rows: Any) -> Any:
    """out[rows, 32] float32, out_stride bytes apart, = the two parts of `sums` together."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sums, out, out_stride, rows = arguments
        with cgutils.for_range(builder, rows) as loop:
            parts = builder.add(sums, builder.mul(loop.index, I64(SUM_BYTES)))
            row = builder.add(out, builder.mul(loop.index, out_stride))
            for half in (0, 1):
                high = load_floats(builder, parts, 64 * half)
                low = load_floats(builder, parts, ROWS * SUM_BYTES + 64 * half)
                store_floats(builder, builder.fadd(high, low), row, 64 * half)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate
