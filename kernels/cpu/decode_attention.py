"""Rotation, caching and attention of compiled steps, by row and kv head."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.activations import tanh
from hotshoe.kernels.cpu.attention_block import (
    MEMBERS,
    add_scores_1,
    add_scores_1x4,
    add_scores_2x4,
    add_scores_3x4,
    add_scores_4x4,
    mix_values_1,
    mix_values_1x4,
    mix_values_2x4,
    mix_values_3x4,
    mix_values_4x4,
    narrow,
    softmax,
)
from hotshoe.kernels.cpu.decode_job import (
    ATTENTION_OUT,
    K_NORM,
    Q_NORM,
    QKV,
    norm_delta,
    round_row,
    site_width,
    vector_of,
)
from hotshoe.kernels.cpu.decode_prompt import see_prompts
from hotshoe.kernels.cpu.jit import compiled, f32, i64, u16
from hotshoe.kernels.cpu.vectors import LANES

WIDE = 4 * LANES


@compiled
def _rotate(j: Any, rope: int, norm: int, delta: int, row: int, source: Any, out: Any, factor: Any) -> None:
    """One query or key head: its norm, if there is one, as the row changes it, then the rotation; times factor.

    Behind the rotary dimensions nothing turns.
    """
    half = j.rotary_dim // 2
    at = 4 * (rope * j.num_rows + row) * half
    cos, sin = f32(j.cos + at, half), f32(j.sin + at, half)
    if norm:
        weight = f32(norm, j.head_dim)
        total = np.float32(0.0)
        for i in range(j.head_dim):
            total += source[i] * source[i]
        inverse = np.float32(1.0) / np.sqrt(total / np.float32(j.head_dim) + j.eps)
        if delta:
            more = f32(delta, j.head_dim)
            for i in range(j.head_dim):
                source[i] = source[i] * inverse * (weight[i] + more[i])
        else:
            for i in range(j.head_dim):
                source[i] = source[i] * inverse * weight[i]
    for i in range(half):
        out[i] = (source[i] * cos[i] - source[half + i] * sin[i]) * factor
        out[half + i] = (source[half + i] * cos[i] + source[i] * sin[i]) * factor
    for i in range(j.rotary_dim, j.head_dim):
        out[i] = source[i] * factor


@compiled
def _norm_of(layer_norm: int, head: int, dim: int) -> int:
    """Where a head's norm weights are, of [heads, dim]; 0 if the family has none."""
    return layer_norm + 4 * head * dim if layer_norm else 0


@compiled
def cache_row(j: Any, layer: int, row: int, kv_head: int, thread: int, fields: Any) -> None:
    """Writes a row's key and value of one kv head into its slot."""
    dim = j.head_dim
    source = j.product + 4 * row * site_width(j, QKV)
    own = fields[3] + 2 * (2 * i64(j.kv_slots + 8 * row, 1)[0] * j.kv_heads + kv_head) * dim
    key = source + 4 * (j.heads + kv_head) * dim
    rotated = j.query + 4 * thread * (j.heads // j.kv_heads) * dim
    norm, delta = _norm_of(fields[2], j.heads + kv_head, dim), norm_delta(j, row, layer, K_NORM)
    _rotate(j, fields[5], norm, delta, row, f32(key, dim), f32(rotated, dim), np.float32(1.0))
    narrow(rotated, own, dim // LANES)
    narrow(source + 4 * (j.heads + j.kv_heads + kv_head) * dim, own + 2 * j.kv_heads * dim, dim // LANES)


@compiled
def attend(j: Any, layer: int, row: int, kv_head: int, thread: int, fields: Any) -> None:
    """What the query heads of a row that share a kv head make of its context, which is cached up to the row itself."""
    dim, group = j.head_dim, j.heads // j.kv_heads
    width = site_width(j, QKV)
    kv, row_size = fields[3], 2 * j.kv_heads * dim  # [slots, 2, kv heads, head_dim]
    length = i64(j.lengths + 8 * row, 1)[0]
    begin = max(0, length - fields[4]) if fields[4] else 0

    query = j.query + 4 * thread * group * dim
    scores = j.probabilities + 4 * thread * group * j.probabilities_stride
    totals = f32(j.totals + 4 * thread * group, group)
    delta = norm_delta(j, row, layer, Q_NORM)
    for member in range(group):
        head = kv_head * group + member
        source, norm = f32(j.product + 4 * (row * width + head * dim), dim), _norm_of(fields[2], head, dim)
        _rotate(j, fields[5], norm, delta, row, source, f32(query + 4 * member * dim, dim), j.query_scale)
    start = row * j.heads * dim + kv_head * group * dim
    prompted = j.prompt_depth > 0 and see_prompts(j, layer, row, kv_head, query, scores, j.attended + 4 * start)
    slots = j.slots + 8 * i64(j.sequences + 8 * row, 1)[0] * j.max_context
    row_bytes, stride = 2 * row_size, 4 * j.probabilities_stride
    keys, values = kv + 2 * kv_head * dim, kv + 2 * (j.kv_heads + kv_head) * dim
    for first in range(0, group, MEMBERS):
        members = min(MEMBERS, group - first)
        q, score = query + 4 * first * dim, scores + stride * first
        vectors = (length - begin + LANES - 1) // LANES
        for member in range(members):
            p = f32(score + stride * member + 4 * begin, LANES * vectors)
            for i in range(p.size):
                p[i] = np.float32(0.0)
        _compare(members, q, keys, row_bytes, slots, begin, length, score, stride, dim)
        for member in range(members):
            p = f32(score + stride * member + 4 * begin, LANES * vectors)
            if j.score_cap > 0:
                for i in range(p.size):
                    p[i] = j.score_cap * tanh(p[i] / j.score_cap)
            for i in range(length - begin, p.size):
                p[i] = -np.float32(np.inf)
            totals[first + member] = softmax(score + stride * member + 4 * begin, vectors)
        _mix(members, score, stride, values, row_bytes, slots, begin, length, q, dim)

    attended = f32(j.attended + 4 * start, group * dim)
    mixed = f32(query, group * dim)
    for member in range(group):
        inverse = np.float32(1.0) / totals[member]
        for i in range(member * dim, (member + 1) * dim):
            mixed[i] *= inverse
    if prompted:
        for i in range(attended.size):
            mixed[i] += attended[i]
    attended[:] = mixed
    scale = vector_of(j.input_scales, j, row, layer, ATTENTION_OUT)
    round_row(attended, u16(j.attended16 + 2 * start, group * dim), scale + 4 * kv_head * group * dim if scale else 0)


@compiled
def _compare(
    members: int,
    query: int,
    keys: int,
    row_bytes: int,
    slots: int,
    begin: int,
    end: int,
    scores: int,
    stride: int,
    dim: int,
) -> None:
    """scores[member, position] += query[member] · key."""
    whole = dim // WIDE * WIDE
    for done in range(0, whole, WIDE):
        q, k = query + 4 * done, keys + 2 * done
        if members == 4:
            add_scores_4x4(q, 4 * dim, k, row_bytes, slots, begin, end, scores, stride)
        elif members == 3:
            add_scores_3x4(q, 4 * dim, k, row_bytes, slots, begin, end, scores, stride)
        elif members == 2:
            add_scores_2x4(q, 4 * dim, k, row_bytes, slots, begin, end, scores, stride)
        else:
            add_scores_1x4(q, 4 * dim, k, row_bytes, slots, begin, end, scores, stride)
    for done in range(whole, dim, LANES):
        for member in range(members):
            q, score = query + 4 * (member * dim + done), scores + member * stride
            add_scores_1(q, 0, keys + 2 * done, row_bytes, slots, begin, end, score, 0)


@compiled
def _mix(
    members: int,
    probabilities: int,
    stride: int,
    values: int,
    row_bytes: int,
    slots: int,
    begin: int,
    end: int,
    out: int,
    dim: int,
) -> None:
    """out[member] = Σ probabilities[member, position] · value."""
    whole = dim // WIDE * WIDE
    for done in range(0, whole, WIDE):
        v, o = values + 2 * done, out + 4 * done
        if members == 4:
            mix_values_4x4(probabilities, stride, v, row_bytes, slots, begin, end, o, 4 * dim)
        elif members == 3:
            mix_values_3x4(probabilities, stride, v, row_bytes, slots, begin, end, o, 4 * dim)
        elif members == 2:
            mix_values_2x4(probabilities, stride, v, row_bytes, slots, begin, end, o, 4 * dim)
        else:
            mix_values_1x4(probabilities, stride, v, row_bytes, slots, begin, end, o, 4 * dim)
    for done in range(whole, dim, LANES):
        for member in range(members):
            p, o = probabilities + member * stride, out + 4 * (member * dim + done)
            mix_values_1(p, 0, values + 2 * done, row_bytes, slots, begin, end, o, 0)
