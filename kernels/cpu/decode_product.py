"""A site's NF4 product in compiled steps: on matrix tiles where the CPU has them, on vectors elsewhere."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.amx import BLOCK_BYTES, ROWS, SUM_BYTES
from hotshoe.kernels.cpu.decode_job import BLOCK, GATE_UP, SCALES, TILES, site_width
from hotshoe.kernels.cpu.factor_fetch import fetch, lines_to_fetch
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
def multiply(
    j: Any,
    layer: int,
    site: int,
    thread: int,
    rows: int,
    x16: int,
    depth: int,
    first: int,
    last: int,
    fields: Any,
    out: int,
    fetched: int,
    at_once: int,
) -> int:
    """out [rows, all columns of the site] = the first rows of x16 times the weight, in some columns, whole tiles.

    On vectors it asks with each block of inputs for `at_once` lines of the factors that the thread reads next, from
    line `fetched` of them on, and gives how far it came.
    """
    width = site_width(j, site)
    for column in range(first, last, COLUMNS):
        tiles = fields[TILES + site] + column * (depth // 2)
        scales = fields[SCALES + site] + 4 * column * (depth // BLOCK)
        if j.tile_config:
            _multiply_on_tiles(j, thread, rows, x16, depth, tiles, scales, out + 4 * column, width)
            continue
        for block in range(depth // BLOCK):
            if at_once:
                fetch(j, layer, site, thread, fetched, fetched + at_once)
                fetched += at_once
            _multiply_block(
                rows,
                block == 0,
                x16 + 2 * BLOCK * block,
                2 * depth,
                tiles + CODE_BYTES * block,
                scales + SCALE_BYTES * block,
                out + 4 * column,
                4 * width,
            )
    return fetched


@compiled
def lines_at_once(j: Any, layer: int, site: int, thread: int, columns: int, depth: int) -> int:
    """How many lines of factors to ask for with each block of a thread's columns, of gate's in GATE_UP."""
    lines, blocks = lines_to_fetch(j, layer, site, thread), columns // COLUMNS * (depth // BLOCK)
    if site == GATE_UP:
        blocks *= 2
    return (lines + blocks - 1) // blocks if blocks else 0


@compiled
def _multiply_block(
    num_rows: int, begins: bool, x: int, x_stride: int, codes: int, scale: int, out: int, out_stride: int
) -> None:
    """Adds what a block of 64 inputs gives to 32 columns of all rows, which it clears first if it `begins` them."""
    row = 0
    while row < num_rows:
        left = num_rows - row
        rows = 8 if left >= 8 else 4 if left >= 4 else 2 if left >= 2 else 1
        inputs, sums = x + x_stride * row, out + out_stride * row
        if begins:
            for i in range(rows):
                f32(sums + out_stride * i, COLUMNS)[:] = np.float32(0.0)
        if rows == 8:
            add_block_8(inputs, x_stride, codes, scale, sums, out_stride)
        elif rows == 4:
            add_block_4(inputs, x_stride, codes, scale, sums, out_stride)
        elif rows == 2:
            add_block_2(inputs, x_stride, codes, scale, sums, out_stride)
        else:
            add_block_1(inputs, x_stride, codes, scale, sums, out_stride)
        row += rows


@compiled
def _multiply_on_tiles(
    j: Any, thread: int, num_rows: int, x16: int, depth: int, codes: int, scales: int, out: int, width: int
) -> None:
    """The same for 32 columns and all rows, on matrix tiles; `out` is the address of the first row's first column.

    Totals gather in memory of the thread's own: rows of the product lie multiples of 4 KiB apart, which the first-level
    cache keeps no more than a dozen of.
    """
    weights = j.tile_scratch + thread * j.tile_stride
    sums = weights + j.tile_blocks * BLOCK_BYTES
    totals = sums + MANY * SUM_BYTES
    if num_rows < MANY:
        _multiply_few(num_rows, x16, depth, codes, scales, width, weights, sums, totals)
        copy_totals(totals, out, 4 * width, num_rows)
        return
    for block in range(depth // BLOCK):
        unpack_block(codes + CODE_BYTES * block, weights + BLOCK_BYTES * block)
    for row in range(0, num_rows, MANY):
        rows = min(MANY, num_rows - row)
        _multiply_group(rows, x16 + 2 * row * depth, depth, scales, width, weights, sums, totals)
        copy_totals(totals, out + 4 * row * width, 4 * width, rows)


@compiled
def _multiply_few(
    num_rows: int, x16: int, depth: int, codes: int, scales: int, width: int, weights: int, sums: int, totals: int
) -> None:
    """All rows, fewer than MANY: each block is unpacked while the one before is multiplied by."""
    blocks = depth // BLOCK
    unpack_block(codes, weights)
    for block in range(blocks):
        if block + 1 < blocks:
            unpack_block(codes + CODE_BYTES * (block + 1), weights + (block + 1) % 2 * BLOCK_BYTES)
        unpacked, scale = weights + block % 2 * BLOCK_BYTES, scales + SCALE_BYTES * block
        for row in range(0, num_rows, ROWS):
            x, rows = x16 + 2 * (row * depth + BLOCK * block), min(ROWS, num_rows - row)
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
