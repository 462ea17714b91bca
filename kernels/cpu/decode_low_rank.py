"""Low-rank terms of compiled steps: each is one adapter's on one row, and reads that adapter's own units.

Consecutive terms of one adapter form blocks of up to four, which read its factors once. Inputs are halved, so that
two threads can share even a single term; their sums meet in `expand`.
"""

from typing import Any

from hotshoe.kernels.cpu.decode_job import GATE_UP, MAX_TARGETS, NUM_SITES, QKV, UNIT, num_targets, site_width
from hotshoe.kernels.cpu.jit import compiled, f32, i64
from hotshoe.kernels.cpu.low_rank_block import (
    ROWS,
    WIDE,
    expand_1x1,
    expand_1x4,
    expand_2x1,
    expand_2x4,
    expand_4x1,
    expand_4x4,
    shrink_1x1,
    shrink_1x2,
    shrink_1x3,
    shrink_2x1,
    shrink_2x2,
    shrink_2x3,
    shrink_4x1,
    shrink_4x2,
    shrink_4x3,
)
from hotshoe.kernels.cpu.vectors import LANES

HALVES = 2
VALUES_BYTES = 4 * ROWS * UNIT  # of a thread, for what `expand` multiplies by


@compiled
def target_start(j: Any, site: int, target: int) -> int:
    """Where a target's columns begin in its site's."""
    if target == 0:
        return 0
    if site == GATE_UP:
        return target * j.intermediate_size
    if site == QKV:
        return (j.heads + (target - 1) * j.kv_heads) * j.head_dim
    return j.hidden_size


@compiled
def _ranks(j: Any, layer: int, site: int, term: int) -> Any:
    """A term's rank at each target of a site."""
    adapter = i64(j.term_adapters + 8 * term, 1)[0]
    return i64(j.ranks + 8 * ((adapter * j.num_layers + layer) * NUM_SITES + site) * MAX_TARGETS, MAX_TARGETS)


@compiled
def _is_folded(j: Any, term: int) -> bool:
    """Whether the factors of a term's adapter lie folded, as `LowRankTable` says."""
    return i64(j.folded + 8 * i64(j.term_adapters + 8 * term, 1)[0], 1)[0] != 0


@compiled
def shrink(j: Any, layer: int, site: int, block: int, half: int, x: int, depth: int) -> None:
    """What half of the inputs x give of x A, for all targets of a site and the terms of a block."""
    first, last = i64(j.term_blocks + 8 * block, 2)
    ranks = _ranks(j, layer, site, first)
    units = (max(ranks[0], ranks[1], ranks[2]) + UNIT - 1) // UNIT
    targets = num_targets(j, site)
    columns, inputs = targets * UNIT, depth // HALVES
    a = i64(j.tables + 8 * (layer * NUM_SITES + site) * 2, 1)[0]
    rows = i64(j.term_rows + 8 * first, last - first)
    if _is_folded(j, first):
        if units:
            _shrink_folded(j, first, rows, targets, half, x, depth, a)
        return
    begin = x + 4 * half * inputs
    x0, x1 = begin + 4 * rows[0] * depth, begin + 4 * rows[min(1, rows.size - 1)] * depth
    x2, x3 = begin + 4 * rows[min(2, rows.size - 1)] * depth, begin + 4 * rows[rows.size - 1] * depth
    unit = i64(j.term_units + 8 * first, 1)[0]
    for u in range(units):
        factor = a + 2 * ((unit + u) * depth + half * inputs) * columns
        out = j.shrunk + 4 * ((half * j.num_terms + first) * j.shrunk_stride + u * columns)
        shrink_rows(rows.size, targets, x0, x1, x2, x3, factor, inputs, out, 4 * j.shrunk_stride)


@compiled
def _shrink_folded(j: Any, first: int, rows: Any, targets: int, half: int, x: int, depth: int, a: int) -> None:
    """The same of a folded unit: each row counts as two, of the first and of the second half of its inputs."""
    inputs, columns, stride = depth // (2 * HALVES), targets * UNIT, j.shrunk_stride // 2
    begin, second = x + 4 * half * inputs, 2 * depth
    factor = a + 2 * (i64(j.term_units + 8 * first, 1)[0] * depth + half * inputs) * columns
    out = j.shrunk + 8 * (half * j.num_terms + first) * stride
    for index in range(0, rows.size, 2):
        x0 = begin + 4 * rows[index] * depth
        x2 = begin + 4 * rows[min(index + 1, rows.size - 1)] * depth
        count = 2 * min(2, rows.size - index)
        shrink_rows(
            count, targets, x0, x0 + second, x2, x2 + second, factor, inputs, out + 8 * index * stride, 4 * stride
        )


@compiled
def shrink_rows(
    rows: int, targets: int, x0: int, x1: int, x2: int, x3: int, factor: int, inputs: int, out: int, stride: int
) -> None:
    """out[row, targets · 16] = x[row, inputs] times the factor [inputs, targets · 16], for 1, 2 or 4 rows."""
    if targets == 1:
        if rows == 4:
            shrink_4x1(x0, x1, x2, x3, factor, inputs, out, stride)
        elif rows == 2:
            shrink_2x1(x0, x1, x2, x3, factor, inputs, out, stride)
        else:
            shrink_1x1(x0, x1, x2, x3, factor, inputs, out, stride)
    elif targets == 2:
        if rows == 4:
            shrink_4x2(x0, x1, x2, x3, factor, inputs, out, stride)
        elif rows == 2:
            shrink_2x2(x0, x1, x2, x3, factor, inputs, out, stride)
        else:
            shrink_1x2(x0, x1, x2, x3, factor, inputs, out, stride)
    else:
        if rows == 4:
            shrink_4x3(x0, x1, x2, x3, factor, inputs, out, stride)
        elif rows == 2:
            shrink_2x3(x0, x1, x2, x3, factor, inputs, out, stride)
        else:
            shrink_1x3(x0, x1, x2, x3, factor, inputs, out, stride)


@compiled
def expand(j: Any, layer: int, site: int, block: int, thread: int, low: int, high: int) -> None:
    """Adds weight · (x A) B of a block's terms to some columns of their rows."""
    first, last = i64(j.term_blocks + 8 * block, 2)
    ranks, targets, width = _ranks(j, layer, site, first), num_targets(j, site), site_width(j, site)
    unit = i64(j.term_units + 8 * first, 1)[0]
    b = i64(j.tables + 8 * ((layer * NUM_SITES + site) * 2 + 1), 1)[0]
    values = j.low_rank_values + thread * VALUES_BYTES
    for target in range(targets):
        begin = max(low, target_start(j, site, target))
        end = high if target + 1 == targets else min(high, target_start(j, site, target + 1))
        if end <= begin:
            continue
        for u in range((ranks[target] + UNIT - 1) // UNIT):
            _gather(j, first, last - first, (u * targets + target) * UNIT, values)
            factor, left = b + 2 * (unit + u) * UNIT * width, ranks[target] - u * UNIT
            rows = i64(j.term_rows + 8 * first, last - first)
            expand_rows(rows, j.product, values, factor, width, min(UNIT, left), begin, end)


@compiled
def _gather(j: Any, first: int, rows: int, place: int, values: int) -> None:
    """values[rows, 16] = weight · (x A) of the block's terms at one unit and target."""
    folded = _is_folded(j, first)
    for i in range(rows):
        term = first + i
        weight = f32(j.weights + 4 * term, 1)[0]
        at, behind = term * j.shrunk_stride + place, j.num_terms * j.shrunk_stride
        one, other = f32(j.shrunk + 4 * at, UNIT), f32(j.shrunk + 4 * (at + behind), UNIT)
        out = f32(values + 4 * UNIT * i, UNIT)
        if folded:
            at += j.shrunk_stride // 2 + UNIT // 2
            third, fourth = f32(j.shrunk + 4 * at, UNIT // 2), f32(j.shrunk + 4 * (at + behind), UNIT // 2)
            for rank in range(UNIT // 2):
                out[rank] = weight * ((one[rank] + other[rank]) + (third[rank] + fourth[rank]))
        else:
            for rank in range(UNIT):
                out[rank] = weight * (one[rank] + other[rank])


@compiled
def expand_rows(rows: Any, y: int, values: int, factor: int, width: int, ranks: int, begin: int, end: int) -> None:
    """y[rows] += values [rows, 16] times the factor [ranks, width] in columns begin … end−1, whole vectors of them.

    y and values: addresses of float32; rows: 1, 2 or 4 of y's.
    """
    count = rows.size
    y0, y1 = y + 4 * rows[0] * width, y + 4 * rows[min(1, count - 1)] * width
    y2, y3 = y + 4 * rows[min(2, count - 1)] * width, y + 4 * rows[count - 1] * width
    whole = begin + (end - begin) // (WIDE * LANES) * (WIDE * LANES)
    for column in range(begin, whole, WIDE * LANES):
        c, b = 4 * column, factor + 2 * column
        if count == 4:
            expand_4x4(values, b, 2 * width, ranks, y0 + c, y1 + c, y2 + c, y3 + c)
        elif count == 2:
            expand_2x4(values, b, 2 * width, ranks, y0 + c, y1 + c, y2 + c, y3 + c)
        else:
            expand_1x4(values, b, 2 * width, ranks, y0 + c, y1 + c, y2 + c, y3 + c)
    for column in range(whole, end, LANES):
        c, b = 4 * column, factor + 2 * column
        if count == 4:
            expand_4x1(values, b, 2 * width, ranks, y0 + c, y1 + c, y2 + c, y3 + c)
        elif count == 2:
            expand_2x1(values, b, 2 * width, ranks, y0 + c, y1 + c, y2 + c, y3 + c)
        else:
            expand_1x1(values, b, 2 * width, ranks, y0 + c, y1 + c, y2 + c, y3 + c)
