"""The base's product several times for some rows, its inputs and outputs scaled, in compiled steps.

Each copy is a row of its own for the product; the threads write some copies' inputs, meet, multiply, and add.
"""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.amx import ROWS
from hotshoe.kernels.cpu.decode_job import COPY_WIDTH, MAX_TARGETS, NUM_SITES, num_targets, round_row, segment_of
from hotshoe.kernels.cpu.jit import compiled, f32, i64, u16

AT_ONCE = 64  # copies that are multiplied together; on matrix tiles, which are set up for the step's rows, one tile
LIST_WIDTH = 2 + MAX_TARGETS  # of a copy its row, its outputs' scale, and its inputs' of each target


@compiled
def has_copies(j: Any, layer: int, site: int) -> bool:
    """Whether any row takes the product of a site again."""
    return j.copy_depth > 0 and i64(j.site_copies + 8 * (layer * NUM_SITES + site), 1)[0] != 0


@compiled
def copies_to_multiply(j: Any, count: int) -> int:
    """How many rows the product of so many copies takes: whole matrix tiles."""
    return (count + ROWS - 1) // ROWS * ROWS if j.tile_config else count


@compiled
def copied_input(j: Any, target: int, depth: int) -> int:
    """Where a target's inputs of the copies are, [AT_ONCE, depth] in bfloat16."""
    return j.copied16 + 2 * target * AT_ONCE * depth


@compiled
def list_copies(j: Any, layer: int, site: int, thread: int, skipped: int) -> int:
    """Notes, for a thread, the copies behind the first `skipped`, row by row in the order of stacks; how many."""
    most = ROWS if j.tile_config else AT_ONCE
    place, listed = 0, 0
    for row in range(j.num_rows):
        segment = segment_of(j, row)
        if segment < 0:
            continue
        for index in range(j.copy_depth):
            at = ((index * j.num_segments + segment) * j.num_layers + layer) * NUM_SITES + site
            fields = i64(j.copies + 8 * COPY_WIDTH * at, COPY_WIDTH)
            for copy in range(max(0, skipped - place), min(fields[0], skipped + most - place)):
                _note(j, site, thread, listed, row, copy, fields)
                listed += 1
            place += fields[0]
    return listed


@compiled
def _note(j: Any, site: int, thread: int, index: int, row: int, copy: int, fields: Any) -> None:
    depth, width = fields[2], fields[3]
    entry = i64(j.copy_list + 8 * LIST_WIDTH * (thread * AT_ONCE + index), LIST_WIDTH)
    entry[0], entry[1] = row, fields[1] + 4 * copy * width
    for target in range(num_targets(j, site)):
        entry[2 + target] = fields[4 + target] + 4 * copy * depth


@compiled
def copy_inputs(j: Any, site: int, thread: int, team: int, count: int, x: int, depth: int) -> None:
    """A thread's part of the inputs of the copies that are noted, of x [rows, depth] in float32."""
    for task in range(thread, num_targets(j, site) * count, team):
        target, index = task // count, task % count
        entry = i64(j.copy_list + 8 * LIST_WIDTH * (thread * AT_ONCE + index), LIST_WIDTH)
        out = u16(copied_input(j, target, depth) + 2 * index * depth, depth)
        round_row(f32(x + 4 * entry[0] * depth, depth), out, entry[2 + target])


@compiled
def add_copies(j: Any, thread: int, count: int, width: int, first: int, last: int) -> None:
    """product[row] += outputs ∘ what was multiplied, in columns first … last−1, for each copy that is noted."""
    for index in range(count):
        entry = i64(j.copy_list + 8 * LIST_WIDTH * (thread * AT_ONCE + index), LIST_WIDTH)
        out = f32(j.product + 4 * (entry[0] * width + first), last - first)
        copied = f32(j.copied + 4 * (index * width + first), last - first)
        scale = f32(entry[1] + 4 * first, last - first)
        for i in range(last - first):
            out[i] += np.float32(scale[i] * copied[i])
