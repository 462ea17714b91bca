"""Narrow networks beside a layer's blocks in compiled steps: each term is one adapter's on one row.

What a network reads is noted before the block's output is added to the residual; what it gives is added after. Both of
its matrices are low-rank factors, so terms form the blocks, and inputs the halves, that `decode_low_rank` has.
"""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.activations import activate
from hotshoe.kernels.cpu.decode_job import MAX_RESIDUALS, UNIT
from hotshoe.kernels.cpu.decode_low_rank import HALVES, VALUES_BYTES, expand_rows, shrink_rows
from hotshoe.kernels.cpu.jit import compiled, f32, i64
from hotshoe.kernels.cpu.network_codes import NETWORK_WIDTH, OUTPUT, RESIDUAL


@compiled
def has_networks(j: Any, layer: int, place: int) -> bool:
    """Whether any row has one beside the layer's attention, place 0, or its MLP, place 1."""
    return j.num_network_terms > 0 and i64(j.network_places + 8 * (MAX_RESIDUALS * layer + place), 1)[0] != 0


@compiled
def _network(j: Any, layer: int, place: int, term: int) -> Any:
    """A term's NETWORK_FIELDS; the first is 0 where its adapter has none."""
    adapter = i64(j.network_adapters + 8 * term, 1)[0]
    at = (adapter * j.num_layers + layer) * MAX_RESIDUALS + place
    return i64(j.networks + 8 * NETWORK_WIDTH * at, NETWORK_WIDTH)


@compiled
def tap(j: Any, layer: int, place: int, first: int, last: int) -> None:
    """Notes columns first … last−1 of what networks read; then adds to the block's output what needs no network."""
    size, count = j.hidden_size, last - first
    for term in range(j.num_network_terms):
        network = _network(j, layer, place, term)
        if network[0] == 0:
            continue
        at = 4 * (i64(j.network_rows + 8 * term, 1)[0] * size + first)
        output, residual = f32(j.product + at, count), f32(j.hidden + at, count)
        tapped = f32(j.tapped + 4 * (term * size + first), count)
        if network[5] == OUTPUT:
            tapped[:] = output
        elif network[5] == RESIDUAL:
            tapped[:] = residual
        else:
            for i in range(count):
                tapped[i] = residual[i] + output[i]
    for term in range(j.num_network_terms):
        network = _network(j, layer, place, term)
        if network[0]:
            _add_plain(j, layer, place, term, network[3], first, count)


@compiled
def _add_plain(j: Any, layer: int, place: int, term: int, bias: int, first: int, count: int) -> None:
    """output += weight · (residual_gain · residual + up_bias)."""
    at = 4 * (i64(j.network_rows + 8 * term, 1)[0] * j.hidden_size + first)
    output, residual = f32(j.product + at, count), f32(j.hidden + at, count)
    weight = f32(j.network_weights + 4 * term, 1)[0]
    adapter = i64(j.network_adapters + 8 * term, 1)[0]
    gain = weight * f32(j.network_gains + 4 * ((adapter * j.num_layers + layer) * MAX_RESIDUALS + place), 1)[0]
    if gain != 0:
        for i in range(count):
            output[i] += gain * residual[i]
    if bias:
        b = f32(bias + 4 * first, count)
        for i in range(count):
            output[i] += weight * b[i]


@compiled
def narrow(j: Any, layer: int, place: int, block: int, half: int) -> None:
    """What half of the inputs gives of down · tapped, for the terms of a block."""
    first, last = i64(j.network_blocks + 8 * block, 2)
    network, size = _network(j, layer, place, first), j.hidden_size
    if network[0] == 0:
        return
    inputs, count = size // HALVES, last - first
    begin = j.tapped + 4 * (first * size + half * inputs)
    x1, x2 = begin + 4 * min(1, count - 1) * size, begin + 4 * min(2, count - 1) * size
    for unit in range((network[4] + UNIT - 1) // UNIT):
        factor = network[0] + 2 * UNIT * (unit * size + half * inputs)
        out = j.network_shrunk + 4 * ((half * j.num_network_terms + first) * j.network_stride + unit * UNIT)
        shrink_rows(count, 1, begin, x1, x2, begin + 4 * (count - 1) * size, factor, inputs, out, 4 * j.network_stride)


@compiled
def widen(j: Any, layer: int, place: int, block: int, thread: int, first: int, last: int) -> None:
    """hidden += weight · up φ(down · tapped + down_bias) in columns first … last−1, for the terms of a block."""
    begin, end = i64(j.network_blocks + 8 * block, 2)
    network, size, count = _network(j, layer, place, begin), j.hidden_size, end - begin
    if network[0] == 0:
        return
    values, rows = j.low_rank_values + thread * VALUES_BYTES, i64(j.network_rows + 8 * begin, count)
    for unit in range((network[4] + UNIT - 1) // UNIT):
        for i in range(count):
            _activated(j, begin + i, unit * UNIT, network[1], network[6], f32(values + 4 * UNIT * i, UNIT))
        factor, ranks = network[2] + 2 * unit * UNIT * size, min(UNIT, network[4] - unit * UNIT)
        expand_rows(rows, j.hidden, values, factor, size, ranks, first, last)


@compiled
def _activated(j: Any, term: int, place: int, bias: int, kind: int, out: Any) -> None:
    """out = weight · φ(one half + the other + bias), of one unit."""
    one = f32(j.network_shrunk + 4 * (term * j.network_stride + place), UNIT)
    other = f32(j.network_shrunk + 4 * ((j.num_network_terms + term) * j.network_stride + place), UNIT)
    for i in range(UNIT):
        out[i] = one[i] + other[i]
    if bias:
        b = f32(bias + 4 * place, UNIT)
        for i in range(UNIT):
            out[i] += b[i]
    activate(kind, out)
    weight = f32(j.network_weights + 4 * term, 1)[0]
    for i in range(UNIT):
        out[i] = np.float32(weight * out[i])
