"""A site's NF4 product in compiled steps: on matrix tiles where the CPU has them, on vectors elsewhere."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.amx import BLOCK_BYTES, ROWS, SUM_BYTES
from hotshoe.kernels.cpu.decode_job import BLOCK, SCALES, TILES, site_width
from hotshoe.kernels.cpu.jit import compiled, f32
from hotshoe.kernels.cpu.nf4_amx import (
    MANY,
    add_scaled,
    copy_totals,
    multiply_16,
    multiply_32,
    multiply_short,
    set_scaled,
    unpack_block,
)
from hotshoe.kernels.cpu.nf4_block import COLUMNS, add_block_1, add_block_2, add_block_4, add_block_8

CODE_BYTES, SCALE_BYTES = COLUMNS * BLOCK // 2, 4 * COLUMNS  # of a block of 64 inputs by 32 columns


@compiled
def multiply(j: Any, site: int, thread: int, x16: int, depth: int, first: int, last: int, fields: Any) -> None:
    """product = x16 times the weight, in some columns, whole tiles of them."""
    width = site_width(j, site)
    for column in range(first, last, COLUMNS):
        tiles = fields[TILES + site] + column * (depth // 2)
        scales = fields[SCALES + site] + 4 * column * (depth // BLOCK)
        if j.tile_config:
            _multiply_on_tiles(j, thread, x16, depth, tiles, scales, j.product + 4 * column, width)
            continue
        row = 0
        while row < j.num_rows:
            left = j.num_rows - row
            rows = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
            _multiply_tile(j, rows, x16 + 2 * row * depth, depth, tiles, scales, 4 * (row * width + column), width)
            row += rows


@compiled
def _multiply_tile(j: Any, rows: int, x16: int, depth: int, tiles: int, scales: int, offset: int, width: int) -> None:
    out = j.product + offset
    for row in range(rows):
        sums = f32(out + 4 * row * width, COLUMNS)
        for i in range(COLUMNS):
            sums[i] = np.float32(0.0)
    for block in range(depth // BLOCK):
        x, codes, scale = x16 + 2 * BLOCK * block, tiles + CODE_BYTES * block, scales + SCALE_BYTES * block
        if rows == 8:
            add_block_8(x, 2 * depth, codes, scale, out, 4 * width)
        elif rows == 4:
            add_block_4(x, 2 * depth, codes, scale, out, 4 * width)
        elif rows == 2:
            add_block_2(x, 2 * depth, codes, scale, out, 4 * width)
        else:
            add_block_1(x, 2 * depth, codes, scale, out, 4 * width)


@compiled
def _multiply_on_tiles(
    j: Any, thread: int, x16: int, depth: int, codes: int, scales: int, out: int, width: int
) -> None:
    """The same for 32 columns and all rows, on matrix tiles; `out` is the address of the first row's first column.

    Totals gather in memory of the thread's own: rows of the product lie multiples of 4 KiB apart, which the first-level
    cache keeps no more than a dozen of.
    """
    weights = j.tile_scratch + thread * j.tile_stride
    sums = weights + j.tile_blocks * BLOCK_BYTES
    totals = sums + MANY * SUM_BYTES
    if j.num_rows < MANY:
        _multiply_few(j, x16, depth, codes, scales, width, weights, sums, totals)
        copy_totals(totals, out, 4 * width, j.num_rows)
        return
    for block in range(depth // BLOCK):
        unpack_block(codes + CODE_BYTES * block, weights + BLOCK_BYTES * block)
    for row in range(0, j.num_rows, MANY):
        rows = min(MANY, j.num_rows - row)
        _multiply_group(rows, x16 + 2 * row * depth, depth, scales, width, weights, sums, totals)
        copy_totals(totals, out + 4 * row * width, 4 * width, rows)


@compiled
def _multiply_few(
    j: Any, x16: int, depth: int, codes: int, scales: int, width: int, weights: int, sums: int, totals: int
) -> None:
    """All rows, fewer than MANY: each block is unpacked while the one before is multiplied by."""
    blocks = depth // BLOCK
    unpack_block(codes, weights)
    for block in range(blocks):
        if block + 1 < blocks:
            unpack_block(codes + CODE_BYTES * (block + 1), weights + (block + 1) % 2 * BLOCK_BYTES)
        unpacked, scale = weights + block % 2 * BLOCK_BYTES, scales + SCALE_BYTES * block
        for row in range(0, j.num_rows, ROWS):
            x, rows = x16 + 2 * (row * depth + BLOCK * block), min(ROWS, j.num_rows - row)
            if rows == ROWS:
                multiply_16(x, 2 * depth, unpacked, sums)
            else:
                multiply_short(x, 2 * depth, unpacked, sums)
            if block == 0:
                set_scaled(sums, scale, totals + SUM_BYTES * row, rows)
            else:
                add_scaled(sums, scale, totals + SUM_BYTES * row, rows)


@compiled
def _multiply_group(
    rows: int, x16: int, depth: int, scales: int, width: int, weights: int, sums: int, totals: int
) -> None:
    """Up to MANY rows by blocks that are all unpacked. What lies behind the rows is multiplied too, and left there."""
    for block in range(depth // BLOCK):
        x, unpacked = x16 + 2 * BLOCK * block, weights + BLOCK_BYTES * block
        if rows > ROWS:
            multiply_32(x, 2 * depth, unpacked, sums)
        else:
            multiply_16(x, 2 * depth, unpacked, sums)
        if block == 0:
            set_scaled(sums, scales, totals, rows)
        else:
            add_scaled(sums, scales + SCALE_BYTES * block, totals, rows)
