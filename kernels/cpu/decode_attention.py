"""Rotation, caching and attention of compiled steps, by row and kv head."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.attention_block import LANES, add_scores_1, add_scores_4, mix_values_1, mix_values_4
from hotshoe.kernels.cpu.decode_job import ATTENTION_OUT, QKV, round_row, site_width, vector_of
from hotshoe.kernels.cpu.jit import compiled, exp, f32, i64, u16


@compiled
def _rotate(j: Any, layer_norm: int, head: int, row: int, source: Any, out: Any, factor: Any) -> None:
    """One query or key head: its norm if the family has one, then the rotation; times factor."""
    half = j.head_dim // 2
    cos, sin = f32(j.cos + 4 * row * half, half), f32(j.sin + 4 * row * half, half)
    if layer_norm:
        weight = f32(layer_norm + 4 * head * j.head_dim, j.head_dim)
        total = np.float32(0.0)
        for i in range(j.head_dim):
            total += source[i] * source[i]
        inverse = np.float32(1.0) / np.sqrt(total / np.float32(j.head_dim) + j.eps)
        for i in range(j.head_dim):
            source[i] = source[i] * inverse * weight[i]
    for i in range(half):
        out[i] = (source[i] * cos[i] - source[half + i] * sin[i]) * factor
        out[half + i] = (source[half + i] * cos[i] + source[i] * sin[i]) * factor


@compiled
def cache_row(j: Any, layer: int, row: int, kv_head: int, fields: Any) -> None:
    """Writes a row's key and value of one kv head into its slot."""
    dim = j.head_dim
    source = j.product + 4 * row * site_width(j, QKV)
    own = fields[3] + 4 * (2 * i64(j.kv_slots + 8 * row, 1)[0] * j.kv_heads + kv_head) * dim
    key = f32(source + 4 * (j.heads + kv_head) * dim, dim)
    _rotate(j, fields[2], j.heads + kv_head, row, key, f32(own, dim), np.float32(1.0))
    value = f32(source + 4 * (j.heads + j.kv_heads + kv_head) * dim, dim)
    cached = f32(own + 4 * j.kv_heads * dim, dim)
    for i in range(dim):
        cached[i] = value[i]


@compiled
def attend(j: Any, layer: int, row: int, kv_head: int, thread: int, fields: Any) -> None:
    """What the query heads of a row that share a kv head make of its context, which is cached up to the row itself."""
    dim, group = j.head_dim, j.heads // j.kv_heads
    width = site_width(j, QKV)
    kv, row_size = fields[3], 2 * j.kv_heads * dim  # [slots, 2, kv heads, head_dim]
    length = i64(j.lengths + 8 * row, 1)[0]
    begin = max(0, length - fields[4]) if fields[4] else 0

    factor = np.float32(1.0) / np.sqrt(np.float32(dim))
    query = j.query + 4 * thread * group * dim
    scores = j.probabilities + 4 * thread * group * j.probabilities_stride
    for member in range(group):
        head = kv_head * group + member
        source = f32(j.product + 4 * (row * width + head * dim), dim)
        _rotate(j, fields[2], head, row, source, f32(query + 4 * member * dim, dim), factor)
    slot_addresses = j.slots + 8 * i64(j.sequences + 8 * row, 1)[0] * j.max_context
    keys, values = kv + 4 * kv_head * dim, kv + 4 * (j.kv_heads + kv_head) * dim
    for member in range(group):
        q = query + 4 * member * dim
        score = scores + 4 * member * j.probabilities_stride
        p = f32(score + 4 * begin, length - begin)
        for i in range(length - begin):
            p[i] = np.float32(0.0)
        _compare(q, keys, 4 * row_size, slot_addresses, begin, length, score, dim)
        _softmax(p)
        _mix(score, values, 4 * row_size, slot_addresses, begin, length, q, dim)

    start = row * j.heads * dim + kv_head * group * dim
    attended = f32(j.attended + 4 * start, group * dim)
    mixed = f32(query, group * dim)
    for i in range(group * dim):
        attended[i] = mixed[i]
    scale = vector_of(j.input_scales, j, row, layer, ATTENTION_OUT)
    round_row(attended, u16(j.attended16 + 2 * start, group * dim), scale + 4 * kv_head * group * dim if scale else 0)


@compiled
def _compare(query: int, keys: int, row_bytes: int, slots: int, begin: int, end: int, scores: int, dim: int) -> None:
    """scores[position] += query · key."""
    done = 0
    while done + 4 * LANES <= dim:
        add_scores_4(query + 4 * done, keys + 4 * done, row_bytes, slots, begin, end, scores)
        done += 4 * LANES
    while done + LANES <= dim:
        add_scores_1(query + 4 * done, keys + 4 * done, row_bytes, slots, begin, end, scores)
        done += LANES
    if done < dim:
        q, s = f32(query, dim), f32(scores, end)
        for position in range(begin, end):
            k = f32(keys + row_bytes * i64(slots + 8 * position, 1)[0], dim)
            for i in range(done, dim):
                s[position] += q[i] * k[i]


@compiled
def _mix(probabilities: int, values: int, row_bytes: int, slots: int, begin: int, end: int, out: int, dim: int) -> None:
    """out = Σ probabilities[position] · value."""
    done = 0
    while done + 4 * LANES <= dim:
        mix_values_4(probabilities, values + 4 * done, row_bytes, slots, begin, end, out + 4 * done)
        done += 4 * LANES
    while done + LANES <= dim:
        mix_values_1(probabilities, values + 4 * done, row_bytes, slots, begin, end, out + 4 * done)
        done += LANES
    if done < dim:
        p, mixed = f32(probabilities, end), f32(out, dim)
        for i in range(done, dim):
            mixed[i] = np.float32(0.0)
        for position in range(begin, end):
            v = f32(values + row_bytes * i64(slots + 8 * position, 1)[0], dim)
            for i in range(done, dim):
                mixed[i] += p[position] * v[i]


@compiled
def _softmax(p: Any) -> None:
    largest = p[0]
    for i in range(p.size):
        largest = max(largest, p[i])
    total = np.float32(0.0)
    for i in range(p.size):
        p[i] = exp(p[i] - largest)
        total += p[i]
    inverse = np.float32(1.0) / total
    for i in range(p.size):
        p[i] *= inverse
