"""Gated prompts in compiled steps: keys and values that a row's queries see in a softmax of their own."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.decode_job import segment_of
from hotshoe.kernels.cpu.jit import compiled, exp, f32, i64


@compiled
def see_prompts(j: Any, layer: int, row: int, kv_head: int, query: int, scratch: int, out: int) -> bool:
    """out = Σ gate · what the query heads of a row that share a kv head see of its prompts; whether it has any.

    query, out: addresses of [heads of the group, head_dim] float32, the queries times 1 / √head_dim; scratch: of
    [head_dim].
    """
    segment, found = segment_of(j, row), False
    if segment < 0:
        return False
    dim, group = j.head_dim, j.heads // j.kv_heads
    for index in range(j.prompt_depth):
        at = (index * j.num_segments + segment) * j.num_layers + layer
        keys, values, length = i64(j.prompts + 24 * at, 3)
        if length == 0:
            continue
        if not found:
            f32(out, group * dim)[:] = np.float32(0.0)
            found = True
        start, stride = 4 * kv_head * dim, 4 * j.kv_heads * dim
        gate = f32(j.prompt_gates + 4 * at, 1)[0]
        for member in range(group):
            q, o = f32(query + 4 * member * dim, dim), f32(out + 4 * member * dim, dim)
            _see(q, keys + start, values + start, stride, length, gate, f32(scratch, dim), o)
    return found


@compiled
def _see(q: Any, keys: int, values: int, stride: int, length: int, gate: np.float32, mixed: Any, out: Any) -> None:
    """out += gate · softmax(q · keys) values; a score that is no number makes all of it none."""
    largest = _score(q, keys)
    for position in range(1, length):
        largest = max(largest, _score(q, keys + position * stride))
    total = np.float32(0.0)
    mixed[:] = np.float32(0.0)
    for position in range(length):
        score = _score(q, keys + position * stride)
        share = exp(score - largest) if score == score else score
        value = f32(values + position * stride, mixed.size)
        total += share
        for i in range(mixed.size):
            mixed[i] += share * value[i]
    factor = gate / total
    for i in range(mixed.size):
        out[i] += factor * mixed[i]


@compiled
def _score(q: Any, key: int) -> Any:
    k, total = f32(key, q.size), np.float32(0.0)
    for i in range(q.size):
        total += q[i] * k[i]
    return total
