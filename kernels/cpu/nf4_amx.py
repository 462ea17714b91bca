"""The NF4 product on matrix tiles, where the CPU has them: 64 inputs by 32 columns, for 16 or 32 rows at a time.

Codes are looked up once, into bfloat16 tiles that stay in the nearest cache, and every group of rows is multiplied by
those: no look-up is repeated for other rows, and one instruction does the work of 256.
Sums of a block leave the tiles as float32, to be multiplied by scales that are not rounded.

A row's sum runs over the same inputs in the same order in every group.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

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
from hotshoe.kernels.cpu.nf4_block import PAIRS, WORDS, look_up
from hotshoe.kernels.cpu.vectors import I64, load_floats, pointer, prefetch, store_floats

AHEAD = 4096  # bytes of codes
MANY = 2 * ROWS  # rows of a large group


def scratch_bytes(depth: int) -> int:
    """Memory that a thread needs: a column's unpacked blocks, and sums and totals of a group."""
    return depth // 64 * BLOCK_BYTES + 2 * MANY * SUM_BYTES


@intrinsic
def unpack_block(typing_context: Any, codes: Any, weights: Any) -> Any:
    """Looks up 64 inputs by 32 columns of codes, 1,024 bytes, into four tiles at `weights`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = arguments
        for line in range(0, 32 * PAIRS, 64):
            prefetch(builder, source, AHEAD + line)
        for pair in range(PAIRS):
            for half, weights in enumerate(look_up(builder, source, pair)):
                row = (pair // ROWS * 2 + half) * ROWS + pair % ROWS
                builder.store(weights, pointer(builder, target, 64 * row, WORDS)).align = 64
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _product_intrinsic(sums: tuple[int, ...], inputs: tuple[int, ...], weights: tuple[int, int]) -> Any:
    """A product whose rows lie in `inputs`, one group of 16 a tile, and whose sums are two tiles for each of those."""

    @intrinsic
    def multiply(typing_context: Any, x: Any, x_stride: Any, unpacked: Any, out: Any) -> Any:
        """out[rows, 32] float32 = x[rows, 64] bfloat16, x_stride bytes apart, times an unpacked block."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, x_stride, unpacked, out = arguments
            for tile in sums:
                clear_tile(builder, tile)
            for depth_half in (0, 1):
                for group, tile in enumerate(inputs):
                    group_x = builder.add(x, builder.mul(x_stride, I64(ROWS * group)))
                    load_tile(builder, tile, group_x, 64 * depth_half, x_stride)
                for half, tile in enumerate(weights):
                    load_tile(builder, tile, unpacked, TILE_BYTES * (2 * depth_half + half), I64(64))
                    for group, group_inputs in enumerate(inputs):
                        multiply_tiles(builder, sums[2 * group + half], group_inputs, tile)
            for index, tile in enumerate(sums):
                store_tile(builder, tile, out, index // 2 * ROWS * SUM_BYTES + index % 2 * 64, I64(SUM_BYTES))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return multiply


multiply_16 = _product_intrinsic((0, 1), (2,), (3, 4))
multiply_short = _product_intrinsic((5, 6), (7,), (3, 4))  # as many rows as those tiles are configured for
multiply_32 = _product_intrinsic((0, 1, 2, 3), (4, 5), (6, 7))  # every tile has 16 rows


def _scale_intrinsic(anew: bool) -> Any:
    @intrinsic
    def add_scaled(typing_context: Any, sums: Any, scales: Any, totals: Any, rows: Any) -> Any:
        """totals[rows, 32] += sums[rows, 32] ∘ scales[32], or = if `anew`; float32."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            sums, scales, totals, rows = arguments
            halves = [load_floats(builder, scales, 64 * half) for half in (0, 1)]
            with cgutils.for_range(builder, rows) as loop:
                offset = builder.mul(loop.index, I64(SUM_BYTES))
                row, total = builder.add(sums, offset), builder.add(totals, offset)
                for half, scale in enumerate(halves):
                    product = builder.fmul(load_floats(builder, row, 64 * half), scale)
                    if not anew:
                        product = builder.fadd(load_floats(builder, total, 64 * half), product)
                    store_floats(builder, product, total, 64 * half)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return add_scaled


set_scaled, add_scaled = _scale_intrinsic(True), _scale_intrinsic(False)


@intrinsic
def copy_totals(typing_context: Any, totals: Any, out: Any, out_stride: Any, rows: Any) -> Any:
    """out[rows, 32], out_stride bytes apart, = totals[rows, 32]; float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        totals, out, out_stride, rows = arguments
        with cgutils.for_range(builder, rows) as loop:
            total = builder.add(totals, builder.mul(loop.index, I64(SUM_BYTES)))
            row = builder.add(out, builder.mul(loop.index, out_stride))
            for half in (0, 1):
                store_floats(builder, load_floats(builder, total, 64 * half), row, 64 * half)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate
