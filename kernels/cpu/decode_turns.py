"""Inputs that rows turn, or scale in one way for each target of a site, in compiled steps.

Where any row does, the threads write every row's input for every target, and meet before they multiply. Rows of one
stack lie in blocks of up to four, which read its matrices once.
"""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.decode_job import MAX_TARGETS, NUM_SITES, flag_of, num_targets, round_row, segment_of
from hotshoe.kernels.cpu.jit import compiled, f32, i64, u16
from hotshoe.kernels.cpu.nf4_amx import MANY
from hotshoe.kernels.cpu.turn_block import turn_1x1, turn_1x2, turn_2x1, turn_2x2, turn_4x1, turn_4x2
from hotshoe.kernels.cpu.vectors import LANES

SCRATCH_ROWS = 8  # of a thread: four rows scaled, and turned


@compiled
def has_turns(j: Any, layer: int, site: int) -> bool:
    """Whether any row's input is not the same for all targets, or is turned."""
    return flag_of(j.site_turns, layer, site)


@compiled
def turned_input(j: Any, target: int, depth: int) -> int:
    """Where a target's input is, [rows, depth] in bfloat16; what lies behind the rows may be read."""
    return j.turned16 + 2 * target * (j.num_rows + MANY) * depth


@compiled
def turn_inputs(j: Any, layer: int, site: int, thread: int, team: int, x: int, depth: int) -> None:
    """A thread's part of every row's inputs, of x [rows, depth] in float32."""
    for task in range(thread, num_targets(j, site) * j.num_turn_blocks, team):
        target, block = task // j.num_turn_blocks, task % j.num_turn_blocks
        first, last = i64(j.turn_blocks + 8 * block, 2)
        rows, out = i64(j.turn_rows + 8 * first, last - first), turned_input(j, target, depth)
        scale, matrices, size = _turn_of(j, layer, site, target, rows[0])
        if matrices:
            _turn_rows(j, thread, rows, x, depth, scale, matrices, size, out)
        else:
            for row in rows:
                round_row(f32(x + 4 * row * depth, depth), u16(out + 2 * row * depth, depth), scale)


@compiled
def _turn_of(j: Any, layer: int, site: int, target: int, row: int) -> Any:
    """A row's scale, matrices and their size; 0 is none."""
    segment = segment_of(j, row)
    if segment < 0:
        return 0, 0, 0
    at = ((segment * j.num_layers + layer) * NUM_SITES + site) * MAX_TARGETS + target
    scale, matrices, size = i64(j.turns + 24 * at, 3)
    return scale, matrices, size


@compiled
def _turn_rows(
    j: Any, thread: int, rows: Any, x: int, depth: int, scale: int, matrices: int, size: int, out: int
) -> None:
    """out[row] = each block of x[row] ∘ scale times its matrix, of [blocks, size, size] float32."""
    scaled = j.turn_scratch + 4 * SCRATCH_ROWS * thread * depth
    turned = scaled + 4 * (SCRATCH_ROWS // 2) * depth
    for index in range(rows.size):
        source, into = f32(x + 4 * rows[index] * depth, depth), f32(scaled + 4 * index * depth, depth)
        if scale:
            s = f32(scale, depth)
            for i in range(depth):
                into[i] = source[i] * s[i]
        else:
            into[:] = source
    for block in range(depth // size):
        at, matrix = 4 * block * size, matrices + 4 * block * size * size
        if size % LANES == 0:
            _turn_block(rows.size, scaled + at, 4 * depth, matrix, size, turned + at)
        else:
            for index in range(rows.size):
                _turn_small(
                    f32(scaled + 4 * index * depth + at, size), matrix, f32(turned + 4 * index * depth + at, size)
                )
    for index in range(rows.size):
        round_row(f32(turned + 4 * index * depth, depth), u16(out + 2 * rows[index] * depth, depth), 0)


@compiled
def _turn_block(rows: int, x: int, x_bytes: int, matrix: int, size: int, out: int) -> None:
    """A block of 1, 2 or 4 rows, by whole vectors of columns."""
    wide = size // (2 * LANES) * 2 * LANES
    for column in range(0, wide, 2 * LANES):
        if rows == 4:
            turn_4x2(x, x_bytes, matrix + 4 * column, 4 * size, size, out + 4 * column)
        elif rows == 2:
            turn_2x2(x, x_bytes, matrix + 4 * column, 4 * size, size, out + 4 * column)
        else:
            turn_1x2(x, x_bytes, matrix + 4 * column, 4 * size, size, out + 4 * column)
    if wide < size:
        if rows == 4:
            turn_4x1(x, x_bytes, matrix + 4 * wide, 4 * size, size, out + 4 * wide)
        elif rows == 2:
            turn_2x1(x, x_bytes, matrix + 4 * wide, 4 * size, size, out + 4 * wide)
        else:
            turn_1x1(x, x_bytes, matrix + 4 * wide, 4 * size, size, out + 4 * wide)


@compiled
def _turn_small(x: Any, matrix: int, out: Any) -> None:
    """A block of one row."""
    out[:] = np.float32(0.0)
    for k in range(x.size):
        line, one = f32(matrix + 4 * k * x.size, x.size), x[k]
        for i in range(x.size):
            out[i] += one * line[i]
