"""All layers of a step in compiled code, on a team of threads in lockstep.

A step is thousands of small operations: called one by one from Python they cost more than they compute, and each needs
the GIL that the server's event loop wants. Here the whole step is one call without it.

The threads split products by output columns, and attention by (row, kv head). Between parts they meet at a barrier:

    norm, qkv, shrink │ expand │ rope, cache │ attention │ o, shrink │ expand │ norm, gate, up, shrink │ expand │ down …

A row's arithmetic reads that row, its own adapters and its own sequence's cache only, in an order that depends on
nothing else: neither its neighbours nor their number change a bit of it.

Addresses in a job are those of contiguous arrays; 0 is none.
"""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.amx import BLOCK_BYTES, ROWS, SUM_BYTES, configure, release
from hotshoe.kernels.cpu.decode_attention import attend, cache_row
from hotshoe.kernels.cpu.decode_job import (
    ATTENTION_OUT,
    BIAS,
    BLOCK,
    DOWN,
    GATE_UP,
    LAYER_WIDTH,
    NUM_SITES,
    QKV,
    SCALES,
    SPINS,
    TILES,
    round_row,
    site_width,
    vector_of,
)
from hotshoe.kernels.cpu.decode_low_rank import expand, shrink
from hotshoe.kernels.cpu.jit import atomic_add, atomic_load, call_1, call_6, compiled, exp, f32, i64, pause, u16
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

CODE_BYTES = COLUMNS * BLOCK // 2  # of a block of 64 inputs by 32 columns


@compiled
def run_layers(thread: int, team: int, job: Any) -> None:
    """Runs a job's rows through all layers, as one of `team` threads that all call this: hidden changes in place."""
    j = job[0]
    if j.tile_config:
        configure(j.tile_config)
    meeting = j.barrier_base
    size, heads = j.hidden_size, j.heads * j.head_dim
    normed = j.normed + 4 * thread * j.num_rows * size
    normed16 = j.normed16 + 2 * thread * j.num_rows * size
    for layer in range(j.num_layers):
        fields = i64(j.layers + 8 * layer * LAYER_WIDTH, LAYER_WIDTH)

        _normalize(j, layer, QKV, fields[0], normed, normed16)
        meeting = _run_site(j, layer, QKV, thread, team, meeting, normed, normed16, size, fields)
        meeting = _meet(j, team, meeting)

        for task in range(thread, j.num_rows * j.kv_heads, team):
            cache_row(j, layer, task // j.kv_heads, task % j.kv_heads, fields)
        meeting = _meet(j, team, meeting)
        for task in range(thread, j.num_rows * j.kv_heads, team):
            attend(j, layer, task // j.kv_heads, task % j.kv_heads, thread, fields)
        meeting = _meet(j, team, meeting)

        meeting = _run_site(j, layer, ATTENTION_OUT, thread, team, meeting, j.attended, j.attended16, heads, fields)
        _add_to_hidden(j, ATTENTION_OUT, thread, team)
        meeting = _meet(j, team, meeting)

        _normalize(j, layer, GATE_UP, fields[1], normed, normed16)
        meeting = _run_site(j, layer, GATE_UP, thread, team, meeting, normed, normed16, size, fields)
        _activate(j, layer, thread, team)
        meeting = _meet(j, team, meeting)

        meeting = _run_site(
            j, layer, DOWN, thread, team, meeting, j.activated, j.activated16, j.intermediate_size, fields
        )
        _add_to_hidden(j, DOWN, thread, team)
        meeting = _meet(j, team, meeting)
    if j.tile_config:
        release()


@compiled
def help_team(thread: int, team: int, job: Any, orders: int, futex: int) -> None:
    """Runs each job that `orders`, an int64 that counts them up, announces; returns at a job without layers."""
    seen = 0
    while True:
        spins = 0
        while atomic_load(orders) == seen:
            pause()
            spins += 1
            if spins > SPINS:
                call_6(futex, (202, orders, 128, seen, 0, 0))  # SYS_futex, FUTEX_WAIT_PRIVATE on its low half
        seen += 1
        if job[0].num_layers == 0:
            return
        run_layers(thread, team, job)


@compiled
def announce(orders: int, futex: int) -> None:
    """Wakes the helpers for the job that was written."""
    atomic_add(orders, 1)
    call_6(futex, (202, orders, 129, 1 << 30, 0, 0))  # SYS_futex, FUTEX_WAKE_PRIVATE all


@compiled
def _meet(j: Any, team: int, meeting: int) -> int:
    """Waits until all threads are here; gives the number of the next meeting."""
    meeting += team
    atomic_add(j.barrier, 1)
    spins = 0
    while atomic_load(j.barrier) < meeting:
        pause()
        spins += 1
        if spins > SPINS:
            call_1(j.yield_core, (0,))
    return meeting


@compiled
def _start(j: Any, site: int, thread: int, team: int) -> int:
    """A thread's first column of a site; of gate and of up, in GATE_UP, so that it can multiply the two."""
    return i64(j.starts + 8 * (site * (team + 1) + thread), 1)[0]


@compiled
def _run_site(
    j: Any, layer: int, site: int, thread: int, team: int, meeting: int, x: int, x16: int, depth: int, fields: Any
) -> int:
    """A thread's columns of what a site gives: product, output scale, bias, bias delta, low-rank terms.

    x is the site's input in float32, x16 the same scaled and rounded, both [rows, depth].
    """
    first, last = _start(j, site, thread, team), _start(j, site, thread + 1, team)
    second = j.intermediate_size if site == GATE_UP else 0
    _multiply(j, site, thread, x16, depth, first, last, fields)
    if second:
        _multiply(j, site, thread, x16, depth, second + first, second + last, fields)
    terms = j.num_terms > 0 and i64(j.site_terms + 8 * (layer * NUM_SITES + site), 1)[0] != 0
    if terms:
        for term in range(thread, j.num_terms, team):
            shrink(j, layer, site, term, x, depth)
        meeting = _meet(j, team, meeting)
    _finish(j, layer, site, fields[BIAS + site], first, last)
    if second:
        _finish(j, layer, site, fields[BIAS + site], second + first, second + last)
    if terms:
        for term in range(j.num_terms):
            expand(j, layer, site, term, first, last)
            if second:
                expand(j, layer, site, term, second + first, second + last)
    return meeting


@compiled
def _multiply(j: Any, site: int, thread: int, x16: int, depth: int, first: int, last: int, fields: Any) -> None:
    """product = x16 times the weight, in some columns, whole tiles of them."""
    width = site_width(j, site)
    for column in range(first, last, COLUMNS):
        tiles = fields[TILES + site] + column * (depth // 2)
        scales = fields[SCALES + site] + 4 * column
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
        x, codes, scale = x16 + 2 * BLOCK * block, tiles + CODE_BYTES * block, scales + 4 * width * block
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
        unpacked, scale = weights + block % 2 * BLOCK_BYTES, scales + 4 * width * block
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
            add_scaled(sums, scales + 4 * width * block, totals, rows)


@compiled
def _normalize(j: Any, layer: int, site: int, weight: int, normed: int, normed16: int) -> None:
    """RMSNorm of every row: as it is for the adapters, scaled for the product."""
    size = j.hidden_size
    w = f32(weight, size)
    for row in range(j.num_rows):
        x = f32(j.hidden + 4 * row * size, size)
        y = f32(normed + 4 * row * size, size)
        total = np.float32(0.0)
        for i in range(size):
            total += x[i] * x[i]
        inverse = np.float32(1.0) / np.sqrt(total / np.float32(size) + j.eps)
        for i in range(size):
            y[i] = x[i] * inverse * w[i]
        round_row(y, u16(normed16 + 2 * row * size, size), vector_of(j.input_scales, j, row, layer, site))


@compiled
def _finish(j: Any, layer: int, site: int, bias: int, first: int, last: int) -> None:
    """product = product ∘ output scale + bias + bias delta, in some columns of every row."""
    count, width = last - first, site_width(j, site)
    if bias == 0 and j.output_scales == 0 and j.bias_deltas == 0:
        return
    for row in range(j.num_rows):
        out = f32(j.product + 4 * (row * width + first), count)
        scale = vector_of(j.output_scales, j, row, layer, site)
        delta = vector_of(j.bias_deltas, j, row, layer, site)
        if scale:
            s = f32(scale + 4 * first, count)
            for i in range(count):
                out[i] *= s[i]
        if bias:
            b = f32(bias + 4 * first, count)
            for i in range(count):
                out[i] += b[i]
        if delta:
            d = f32(delta + 4 * first, count)
            for i in range(count):
                out[i] += d[i]


@compiled
def _add_to_hidden(j: Any, site: int, thread: int, team: int) -> None:
    first, last = _start(j, site, thread, team), _start(j, site, thread + 1, team)
    for row in range(j.num_rows):
        hidden = f32(j.hidden + 4 * (row * j.hidden_size + first), last - first)
        product = f32(j.product + 4 * (row * j.hidden_size + first), last - first)
        for i in range(last - first):
            hidden[i] += product[i]


@compiled
def _activate(j: Any, layer: int, thread: int, team: int) -> None:
    """silu(gate) ∘ up in a thread's columns: as it is for the adapters, scaled for the product."""
    first, last = _start(j, GATE_UP, thread, team), _start(j, GATE_UP, thread + 1, team)
    size, count = j.intermediate_size, last - first
    for row in range(j.num_rows):
        gate = f32(j.product + 4 * (row * 2 * size + first), count)
        up = f32(j.product + 4 * (row * 2 * size + size + first), count)
        out = f32(j.activated + 4 * (row * size + first), count)
        for i in range(count):
            out[i] = gate[i] / (np.float32(1.0) + exp(-gate[i])) * up[i]
        scale = vector_of(j.input_scales, j, row, layer, DOWN)
        round_row(out, u16(j.activated16 + 2 * (row * size + first), count), scale + 4 * first if scale else 0)
