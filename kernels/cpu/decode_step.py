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

from hotshoe.kernels.cpu.activations import gelu_tanh, sigmoid
from hotshoe.kernels.cpu.amx import configure, release
from hotshoe.kernels.cpu.decode_attention import attend, cache_row
from hotshoe.kernels.cpu.decode_bottleneck import has_networks, narrow, tap, widen
from hotshoe.kernels.cpu.decode_copies import (
    add_copies,
    copied_input,
    copies_to_multiply,
    copy_inputs,
    has_copies,
    list_copies,
)
from hotshoe.kernels.cpu.decode_job import (
    AFTER_MLP,
    ATTENTION_OUT,
    BEFORE_MLP,
    BIAS,
    DOWN,
    GATE_UP,
    GELU_TANH,
    INPUT_NORM,
    LAYER_WIDTH,
    POST_NORM,
    QKV,
    flag_of,
    meet,
    norm_delta,
    num_targets,
    round_row,
    site_width,
    vector_of,
)
from hotshoe.kernels.cpu.decode_low_rank import HALVES, expand, shrink, target_start
from hotshoe.kernels.cpu.decode_product import lines_at_once, multiply
from hotshoe.kernels.cpu.decode_swaps import add_partners, has_swaps, take_partners
from hotshoe.kernels.cpu.decode_turns import has_turns, turn_inputs, turned_input
from hotshoe.kernels.cpu.jit import compiled, f32, i64, u16


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

        _normalize(j, layer, QKV, INPUT_NORM, fields[0], normed, normed16)
        meeting = _run_site(j, layer, QKV, thread, team, meeting, normed, normed16, size, fields)
        meeting = meet(j, team, meeting)

        for task in range(thread, j.num_rows * j.kv_heads, team):
            cache_row(j, layer, task // j.kv_heads, task % j.kv_heads, thread, fields)
        meeting = meet(j, team, meeting)
        for task in range(thread, j.num_rows * j.kv_heads, team):
            attend(j, layer, task // j.kv_heads, task % j.kv_heads, thread, fields)
        meeting = meet(j, team, meeting)

        meeting = _run_site(j, layer, ATTENTION_OUT, thread, team, meeting, j.attended, j.attended16, heads, fields)
        meeting = _add_block(j, layer, 0, fields[6], POST_NORM, thread, team, meeting)

        _normalize(j, layer, GATE_UP, BEFORE_MLP if fields[6] else POST_NORM, fields[1], normed, normed16)
        meeting = _run_site(j, layer, GATE_UP, thread, team, meeting, normed, normed16, size, fields)
        _activate(j, layer, thread, team)
        meeting = meet(j, team, meeting)

        meeting = _run_site(
            j, layer, DOWN, thread, team, meeting, j.activated, j.activated16, j.intermediate_size, fields
        )
        meeting = _add_block(j, layer, 1, fields[7], AFTER_MLP, thread, team, meeting)
    if j.tile_config:
        release()


@compiled
def _start(j: Any, site: int, thread: int, team: int) -> int:
    """A thread's first column of a site; of gate and of up, in GATE_UP, so that it can multiply the two."""
    return i64(j.starts + 8 * (site * (team + 1) + thread), 1)[0]


@compiled
def _run_site(
    j: Any, layer: int, site: int, thread: int, team: int, meeting: int, x: int, x16: int, depth: int, fields: Any
) -> int:
    """A thread's columns of what a site gives: product, output scale, swaps, bias, bias delta, copies, low-rank terms.

    x is the site's input in float32, x16 the same scaled and rounded, both [rows, depth].
    """
    first, last = _start(j, site, thread, team), _start(j, site, thread + 1, team)
    second = j.intermediate_size if site == GATE_UP else 0
    turned = has_turns(j, layer, site)
    if turned:
        turn_inputs(j, layer, site, thread, team, x, depth)
        meeting = meet(j, team, meeting)
    fetched, at_once = 0, lines_at_once(j, layer, site, thread, last - first, depth)
    for part in range(_num_parts(j, site)):
        begin, end = _columns_of(j, site, part, first, last)
        own16 = turned_input(j, _target_of(j, part), depth) if turned else x16
        fetched = multiply(
            j, layer, site, thread, j.num_rows, own16, depth, begin, end, fields, j.product, fetched, at_once
        )
    terms = j.num_terms > 0 and flag_of(j.site_terms, layer, site)
    if terms:
        for task in range(thread, HALVES * j.num_blocks, team):
            shrink(j, layer, site, task // HALVES, task % HALVES, x, depth)
    swaps = has_swaps(j, layer, site)
    if terms or swaps:
        meeting = meet(j, team, meeting)
    if swaps:
        take_partners(j, layer, site, first, last)
        if second:
            take_partners(j, layer, site, second + first, second + last)
        meeting = meet(j, team, meeting)
    _finish(j, layer, site, fields[BIAS + site], first, last)
    if second:
        _finish(j, layer, site, fields[BIAS + site], second + first, second + last)
    if has_copies(j, layer, site):
        meeting = _multiply_copies(j, layer, site, thread, team, meeting, x, depth, fields)
    if terms:
        for block in range(j.num_blocks):
            expand(j, layer, site, block, thread, first, last)
            if second:
                expand(j, layer, site, block, thread, second + first, second + last)
    return meeting


@compiled
def _num_parts(j: Any, site: int) -> int:
    """In how many parts a thread multiplies a site: by target; gate and up, fused or not, are two."""
    return 2 if site == GATE_UP else num_targets(j, site)


@compiled
def _target_of(j: Any, part: int) -> int:
    """The target that a part of a site is of."""
    return 0 if j.fused else part


@compiled
def _columns_of(j: Any, site: int, part: int, first: int, last: int) -> Any:
    """Which columns of a part are a thread's, whole tiles; first … last−1 are its columns of the site, or of gate."""
    if site == GATE_UP:
        return part * j.intermediate_size + first, part * j.intermediate_size + last
    low = target_start(j, site, part)
    high = target_start(j, site, part + 1) if part + 1 < num_targets(j, site) else site_width(j, site)
    return max(first, low), min(last, high)


@compiled
def _multiply_copies(
    j: Any, layer: int, site: int, thread: int, team: int, meeting: int, x: int, depth: int, fields: Any
) -> int:
    """Adds to a thread's columns of the product what rows take of it again."""
    first, last = _start(j, site, thread, team), _start(j, site, thread + 1, team)
    width, done = site_width(j, site), 0
    while True:
        count = list_copies(j, layer, site, thread, done)
        if count == 0:
            return meeting
        done += count
        copy_inputs(j, site, thread, team, count, x, depth)
        meeting = meet(j, team, meeting)
        for part in range(_num_parts(j, site)):
            begin, end = _columns_of(j, site, part, first, last)
            if begin < end:
                rows, x16 = copies_to_multiply(j, count), copied_input(j, _target_of(j, part), depth)
                multiply(j, layer, site, thread, rows, x16, depth, begin, end, fields, j.copied, 0, 0)
                add_copies(j, thread, count, width, begin, end)
        meeting = meet(j, team, meeting)


@compiled
def _normalize(j: Any, layer: int, site: int, norm: int, weight: int, normed: int, normed16: int) -> None:
    """RMSNorm of every row, with what it adds to the weights: as it is for the adapters, scaled for the product."""
    size = j.hidden_size
    w = f32(weight, size)
    for row in range(j.num_rows):
        x = f32(j.hidden + 4 * row * size, size)
        y = f32(normed + 4 * row * size, size)
        total = np.float32(0.0)
        for i in range(size):
            total += x[i] * x[i]
        inverse = np.float32(1.0) / np.sqrt(total / np.float32(size) + j.eps)
        delta = norm_delta(j, row, layer, norm)
        if delta:
            more = f32(delta, size)
            for i in range(size):
                y[i] = x[i] * inverse * (w[i] + more[i])
        else:
            for i in range(size):
                y[i] = x[i] * inverse * w[i]
        round_row(y, u16(normed16 + 2 * row * size, size), vector_of(j.input_scales, j, row, layer, site))


@compiled
def _finish(j: Any, layer: int, site: int, bias: int, first: int, last: int) -> None:
    """product = product ∘ output scale + what is swapped + bias + bias delta, in some columns of every row."""
    count, width = last - first, site_width(j, site)
    swaps = has_swaps(j, layer, site)
    if bias == 0 and j.output_scales == 0 and j.bias_deltas == 0 and not swaps:
        return
    for row in range(j.num_rows):
        out = f32(j.product + 4 * (row * width + first), count)
        scale = vector_of(j.output_scales, j, row, layer, site)
        delta = vector_of(j.bias_deltas, j, row, layer, site)
        if scale:
            s = f32(scale + 4 * first, count)
            for i in range(count):
                out[i] *= s[i]
        if swaps:
            add_partners(j, layer, site, row, first, last)
        if bias:
            b = f32(bias + 4 * first, count)
            for i in range(count):
                out[i] += b[i]
        if delta:
            d = f32(delta + 4 * first, count)
            for i in range(count):
                out[i] += d[i]


@compiled
def _add_block(j: Any, layer: int, place: int, weight: int, norm: int, thread: int, team: int, meeting: int) -> int:
    """hidden += product in a thread's columns, which all sites that end a block share; then what networks give.

    With a norm's weight the product is normed first; then there are no networks.
    """
    first, last = _start(j, DOWN, thread, team), _start(j, DOWN, thread + 1, team)
    if weight:
        meeting = meet(j, team, meeting)
        for row in range(j.num_rows):
            _add_normed(j, layer, norm, row, weight, first, last)
        return meet(j, team, meeting)
    networks = has_networks(j, layer, place)
    if networks:
        tap(j, layer, place, first, last)
    for row in range(j.num_rows):
        hidden = f32(j.hidden + 4 * (row * j.hidden_size + first), last - first)
        product = f32(j.product + 4 * (row * j.hidden_size + first), last - first)
        for i in range(last - first):
            hidden[i] += product[i]
    if networks:
        meeting = meet(j, team, meeting)
        for task in range(thread, HALVES * j.num_network_blocks, team):
            narrow(j, layer, place, task // HALVES, task % HALVES)
        meeting = meet(j, team, meeting)
        for block in range(j.num_network_blocks):
            widen(j, layer, place, block, thread, first, last)
    return meet(j, team, meeting)


@compiled
def _add_normed(j: Any, layer: int, norm: int, row: int, weight: int, first: int, last: int) -> None:
    """hidden += RMSNorm of a row's whole product, in some columns."""
    size = j.hidden_size
    product, hidden = f32(j.product + 4 * row * size, size), f32(j.hidden + 4 * row * size, size)
    w, delta = f32(weight, size), norm_delta(j, row, layer, norm)
    total = np.float32(0.0)
    for i in range(size):
        total += product[i] * product[i]
    inverse = np.float32(1.0) / np.sqrt(total / np.float32(size) + j.eps)
    if delta:
        more = f32(delta, size)
        for i in range(first, last):
            hidden[i] += product[i] * inverse * (w[i] + more[i])
    else:
        for i in range(first, last):
            hidden[i] += product[i] * inverse * w[i]


@compiled
def _activate(j: Any, layer: int, thread: int, team: int) -> None:
    """φ(gate) ∘ up in a thread's columns: as it is for the adapters, scaled for the product."""
    first, last = _start(j, GATE_UP, thread, team), _start(j, GATE_UP, thread + 1, team)
    size, count = j.intermediate_size, last - first
    for row in range(j.num_rows):
        gate = f32(j.product + 4 * (row * 2 * size + first), count)
        up = f32(j.product + 4 * (row * 2 * size + size + first), count)
        out = f32(j.activated + 4 * (row * size + first), count)
        if j.gate == GELU_TANH:
            for i in range(count):
                out[i] = gelu_tanh(gate[i]) * up[i]
        else:
            for i in range(count):
                out[i] = gate[i] * sigmoid(gate[i]) * up[i]
        scale = vector_of(j.input_scales, j, row, layer, DOWN)
        round_row(out, u16(j.activated16 + 2 * (row * size + first), count), scale + 4 * first if scale else 0)
