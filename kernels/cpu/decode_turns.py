"""Inputs that rows turn, or scale in one way for each target of a site, in compiled steps.

Where any row does, the threads write every row's input for every target, and meet before they multiply.
"""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.decode_job import MAX_TARGETS, NUM_SITES, flag_of, num_targets, round_row, segment_of
from hotshoe.kernels.cpu.jit import compiled, f32, i64, u16
from hotshoe.kernels.cpu.nf4_amx import MANY


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
    for task in range(thread, num_targets(site) * j.num_rows, team):
        target, row = task // j.num_rows, task % j.num_rows
        source = f32(x + 4 * row * depth, depth)
        out = u16(turned_input(j, target, depth) + 2 * row * depth, depth)
        segment = segment_of(j, row)
        if segment < 0:
            round_row(source, out, 0)
            continue
        at = ((segment * j.num_layers + layer) * NUM_SITES + site) * MAX_TARGETS + target
        scale, matrices, size = i64(j.turns + 24 * at, 3)
        if matrices == 0:
            round_row(source, out, scale)
        else:
            turned = j.turn_scratch + 8 * thread * depth
            _turn(source, scale, matrices, size, f32(turned + 4 * depth, depth), f32(turned, depth))
            round_row(f32(turned, depth), out, 0)


@compiled
def _turn(x: Any, scale: int, matrices: int, size: int, scaled: Any, out: Any) -> None:
    """out = each block of x ∘ scale times its matrix, of [blocks, size, size] float32."""
    scaled[:] = x
    if scale:
        s = f32(scale, x.size)
        for i in range(x.size):
            scaled[i] *= s[i]
    out[:] = np.float32(0.0)
    for block in range(x.size // size):
        turned = out[block * size : (block + 1) * size]
        for k in range(size):
            one = scaled[block * size + k]
            line = f32(matrices + 4 * (block * size + k) * size, size)
            for i in range(size):
                turned[i] += one * line[i]
