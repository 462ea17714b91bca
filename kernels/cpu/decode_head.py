"""The final norm and the output head in compiled steps: logits of the rows that are asked about."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.decode_job import meet
from hotshoe.kernels.cpu.int8_head import (
    COLUMNS,
    DEPTH,
    LARGEST_INPUT,
    TILE_BYTES,
    multiply_tile_1,
    multiply_tile_2,
    multiply_tile_4,
)
from hotshoe.kernels.cpu.jit import compiled, f32, from_bf16, i8, i32, i64, u16


@compiled
def run_head(thread: int, team: int, job: Any) -> None:
    """Writes a job's logits and what is found in them, as one of `team` threads that all call this.

    Each computes some of the vocabulary, then looks at some of the rows: the logits that may be the largest are
    computed again, in float32 from the bfloat16 weight.
    """
    j = job[0]
    for row in range(thread, j.num_logits, team):
        _prepare(j, row)
    meeting = meet(j, team, j.barrier_base)
    tiles = j.vocab_size // COLUMNS
    for tile in range(tiles * thread // team, tiles * (thread + 1) // team):
        row = 0
        while row < j.num_logits:
            left = j.num_logits - row
            rows = 4 if left >= 4 else 2 if left >= 2 else 1
            _multiply(j, tile, row, rows)
            row += rows
    meeting = meet(j, team, meeting)
    for row in range(thread, j.num_logits, team):
        _look_again(j, row)
    meet(j, team, meeting)


@compiled
def _prepare(j: Any, row: int) -> None:
    """RMSNorm of the row whose logits come at `row`, in float32 and as whole numbers."""
    size, blocks = j.hidden_size, j.hidden_size // DEPTH
    x = f32(j.hidden + 4 * i64(j.logit_rows + 8 * row, 1)[0] * size, size)
    y, weight = f32(j.head_inputs + 4 * row * size, size), f32(j.final_norm, size)
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * x[i]
    inverse = np.float32(1.0) / np.sqrt(total / np.float32(size) + j.eps)
    largest = np.float32(0.0)
    for i in range(size):
        y[i] = x[i] * inverse * weight[i]
    delta = i64(j.head_norm_deltas + 8 * row, 1)[0] if j.head_norm_deltas else 0
    if delta:
        more = f32(delta, size)
        for i in range(size):
            y[i] = x[i] * inverse * (weight[i] + more[i])
    for i in range(size):
        largest = max(largest, abs(y[i]))
    f32(j.head_scales + 4 * row, 1)[0] = largest / np.float32(LARGEST_INPUT)
    unit = np.float32(LARGEST_INPUT) / largest if largest > 0 else np.float32(0.0)
    errors, bound = f32(j.head_errors, blocks), np.float32(0.0)
    for block in range(blocks):
        squares = _round_block(j, row, block, unit)
        bound += errors[block] * errors[block] * squares
    margin = np.float32(2.0) * np.sqrt(bound)
    f32(j.margins + 4 * row, 1)[0] = margin
    # `largest` may have missed a NaN, the sums have not; and what is normalized to finite numbers has finite logits
    i64(j.finite + 8 * row, 1)[0] = total + margin < np.float32(np.inf)


@compiled
def _round_block(j: Any, row: int, block: int, unit: np.float32) -> Any:
    """Rounds a block of a row's inputs to multiples of 1 / unit; gives the sum of their squares."""
    start = row * j.hidden_size + block * DEPTH
    y, high, low = f32(j.head_inputs + 4 * start, DEPTH), i8(j.high + start, DEPTH), i8(j.low + start, DEPTH)
    squares, sum_of_inputs = np.float32(0.0), np.int32(0)
    for i in range(DEPTH):
        whole = np.int32(np.rint(y[i] * unit))
        upper = np.int32((whole + np.int32(128)) >> np.int32(8))
        high[i], low[i] = upper, np.int32(whole - (upper << np.int32(8)))
        sum_of_inputs += whole
        squares += y[i] * y[i]
    i32(j.head_offsets + 4 * (row * (j.hidden_size // DEPTH) + block), 1)[0] = np.int32(-128) * sum_of_inputs
    return squares


@compiled
def _multiply(j: Any, tile: int, row: int, rows: int) -> None:
    size, blocks, tiles = j.hidden_size, j.hidden_size // DEPTH, j.vocab_size // COLUMNS
    high, low, offsets = j.high + row * size, j.low + row * size, j.head_offsets + 4 * row * blocks
    scales, weights = j.head_scales + 4 * row, j.head + tile * blocks * TILE_BYTES
    out, stride = j.logits + 4 * (row * j.vocab_size + COLUMNS * tile), 4 * j.vocab_size
    largest = j.largest + 4 * (row * tiles + tile)
    if rows == 4:
        multiply_tile_4(high, low, size, offsets, 4 * blocks, scales, weights, blocks, out, stride, largest, 4 * tiles)
    elif rows == 2:
        multiply_tile_2(high, low, size, offsets, 4 * blocks, scales, weights, blocks, out, stride, largest, 4 * tiles)
    else:
        multiply_tile_1(high, low, size, offsets, 4 * blocks, scales, weights, blocks, out, stride, largest, 4 * tiles)


@compiled
def _look_again(j: Any, row: int) -> None:
    """Computes the logits that are within the margin of the largest exactly, and notes the likeliest of them."""
    tiles = j.vocab_size // COLUMNS
    largest = f32(j.largest + 4 * row * tiles, tiles)
    limit = largest[0]
    for tile in range(tiles):
        limit = max(limit, largest[tile])
    limit -= f32(j.margins + 4 * row, 1)[0]
    best, likeliest = -np.float32(np.inf), 0
    for tile in range(tiles):
        if largest[tile] < limit:
            continue
        logits = f32(j.logits + 4 * (row * j.vocab_size + COLUMNS * tile), COLUMNS)
        for column in range(COLUMNS):
            if logits[column] < limit:
                continue
            logits[column] = _logit(j, row, COLUMNS * tile + column)
            if logits[column] > best:
                best, likeliest = logits[column], COLUMNS * tile + column
    i64(j.likeliest + 8 * row, 1)[0] = likeliest


@compiled
def _logit(j: Any, row: int, token: int) -> Any:
    size = j.hidden_size
    x, weight = f32(j.head_inputs + 4 * row * size, size), u16(j.head_rows + 2 * token * size, size)
    total = np.float32(0.0)
    for i in range(size):
        total += x[i] * from_bf16(weight[i])
    return total
