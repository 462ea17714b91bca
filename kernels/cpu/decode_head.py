"""The final norm and the output head in compiled steps, on matrix tiles: logits of the rows that are asked about."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.amx import BLOCK_BYTES, ROWS, SUM_BYTES, configure, release
from hotshoe.kernels.cpu.decode_job import BLOCK, meet
from hotshoe.kernels.cpu.dense_amx import COLUMNS, FOUND_BYTES, multiply_column, store_column
from hotshoe.kernels.cpu.jit import compiled, f32, from_bf16, i64, to_bf16, u16
from hotshoe.kernels.cpu.vectors import LANES


@compiled
def run_head(thread: int, team: int, job: Any) -> None:
    """Writes a job's logits and what is found in them, as one of `team` threads that all call this.

    Each computes some of the vocabulary.
    """
    j = job[0]
    size, width = j.hidden_size, 4 * j.vocab_size
    for row in range(thread, j.num_logits, team):
        _normalize(j, row)
    meet(j, team, j.barrier_base)

    found = j.head_found + thread * j.num_logits * FOUND_BYTES
    _forget(found, j.num_logits)
    configure(j.tile_config)
    sums, blocks, columns = j.head_sums + thread * 2 * ROWS * SUM_BYTES, size // BLOCK, j.vocab_size // COLUMNS
    for column in range(columns * thread // team, columns * (thread + 1) // team):
        weights = j.head + column * blocks * BLOCK_BYTES
        for row in range(0, j.num_logits, ROWS):
            inputs = 2 * row * size
            multiply_column(j.high + inputs, j.low + inputs, 2 * size, weights, blocks, sums)
            out = j.logits + row * width + 4 * COLUMNS * column
            noted, rows = found + FOUND_BYTES * row, min(ROWS, j.num_logits - row)
            store_column(sums, out, width, rows, noted, FOUND_BYTES, COLUMNS * column)
    release()
    meet(j, team, j.barrier_base + team)


@compiled
def _forget(found: int, rows: int) -> None:
    """As `store_column` wants it at first."""
    for row in range(rows):
        noted = f32(found + FOUND_BYTES * row, 3 * LANES)
        for lane in range(LANES):
            noted[lane], noted[LANES + lane], noted[2 * LANES + lane] = -np.float32(np.inf), 0.0, 0.0


@compiled
def _normalize(j: Any, row: int) -> None:
    """RMSNorm of the row whose logits come at `row`, as the sum of two bfloat16 numbers."""
    size = j.hidden_size
    x = f32(j.hidden + 4 * i64(j.logit_rows + 8 * row, 1)[0] * size, size)
    weight = f32(j.final_norm, size)
    high, low = u16(j.high + 2 * row * size, size), u16(j.low + 2 * row * size, size)
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    inverse = np.float32(1.0) / np.sqrt(total / np.float32(size) + j.eps)
    for i in range(size):
        y = x[i] * inverse * weight[i]
        high[i] = to_bf16(y)
        low[i] = to_bf16(y - from_bf16(high[i]))
