"""Low-rank terms of compiled steps: each is one adapter's on one row, and reads that adapter's own units."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.decode_job import GATE_UP, MAX_TARGETS, NUM_SITES, QKV, UNIT, site_width
from hotshoe.kernels.cpu.jit import compiled, f32, from_bf16, i64, u16


@compiled
def num_targets(site: int) -> int:
    """How many targets share a site."""
    return 3 if site == QKV else 2 if site == GATE_UP else 1


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
def shrink(j: Any, layer: int, site: int, term: int, x: int, depth: int) -> None:
    """A term's x A for all targets of a site."""
    ranks = _ranks(j, layer, site, term)
    units = (max(ranks[0], ranks[1], ranks[2]) + UNIT - 1) // UNIT
    columns = num_targets(site) * UNIT
    unit = i64(j.term_units + 8 * term, 1)[0]
    a = i64(j.tables + 8 * (layer * NUM_SITES + site) * 2, 1)[0]
    inputs = f32(x + 4 * i64(j.term_rows + 8 * term, 1)[0] * depth, depth)
    for u in range(units):
        out = f32(j.shrunk + 4 * (term * j.shrunk_stride + u * columns), columns)
        for c in range(columns):
            out[c] = np.float32(0.0)
        for k in range(0, depth, 4):  # four at a time, so that the sums are read and written less often
            x0, x1, x2, x3 = inputs[k], inputs[k + 1], inputs[k + 2], inputs[k + 3]
            row = u16(a + 2 * ((unit + u) * depth + k) * columns, 4 * columns)
            r0, r1, r2, r3 = (
                row[:columns],
                row[columns : 2 * columns],
                row[2 * columns : 3 * columns],
                row[3 * columns :],
            )
            for c in range(columns):
                out[c] += (x0 * from_bf16(r0[c]) + x1 * from_bf16(r1[c])) + (
                    x2 * from_bf16(r2[c]) + x3 * from_bf16(r3[c])
                )


@compiled
def expand(j: Any, layer: int, site: int, term: int, first: int, last: int) -> None:
    """Adds weight · (x A) B of a term to some columns of its row."""
    targets, width = num_targets(site), site_width(j, site)
    ranks = _ranks(j, layer, site, term)
    unit = i64(j.term_units + 8 * term, 1)[0]
    b = i64(j.tables + 8 * ((layer * NUM_SITES + site) * 2 + 1), 1)[0]
    weight = f32(j.weights + 4 * term, 1)[0]
    row = i64(j.term_rows + 8 * term, 1)[0]
    for target in range(targets):
        low = max(first, target_start(j, site, target))
        high = last if target + 1 == targets else min(last, target_start(j, site, target + 1))
        if high <= low:
            continue
        out = f32(j.product + 4 * (row * width + low), high - low)
        rank = 0
        while rank + 4 <= ranks[target]:
            v0, b0 = _factor(j, term, rank, target, targets, weight, b, unit, width, low, high)
            v1, b1 = _factor(j, term, rank + 1, target, targets, weight, b, unit, width, low, high)
            v2, b2 = _factor(j, term, rank + 2, target, targets, weight, b, unit, width, low, high)
            v3, b3 = _factor(j, term, rank + 3, target, targets, weight, b, unit, width, low, high)
            for i in range(high - low):
                out[i] += (v0 * from_bf16(b0[i]) + v1 * from_bf16(b1[i])) + (
                    v2 * from_bf16(b2[i]) + v3 * from_bf16(b3[i])
                )
            rank += 4
        while rank < ranks[target]:
            v0, b0 = _factor(j, term, rank, target, targets, weight, b, unit, width, low, high)
            for i in range(high - low):
                out[i] += v0 * from_bf16(b0[i])
            rank += 1


@compiled
def _factor(
    j: Any,
    term: int,
    rank: int,
    target: int,
    targets: int,
    weight: Any,
    b: int,
    unit: int,
    width: int,
    low: int,
    high: int,
) -> Any:
    """weight · (x A) of one rank, and that rank's part of B in columns low … high−1."""
    place = (rank // UNIT * targets + target) * UNIT + rank % UNIT
    value = weight * f32(j.shrunk + 4 * (term * j.shrunk_stride + place), 1)[0]
    return value, u16(b + 2 * ((unit * UNIT + rank) * width + low), high - low)
