"""The two halves of a low-rank update on vector registers: rows of one adapter read each of its factors once.

Factors are bfloat16 and widened as they are read; everything else is float32. A row's sums run over inputs, or ranks,
in an order that depends on nothing else: neither on the other rows nor on how many go together.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hotshoe.kernels.cpu.vectors import (
    I64,
    LANES,
    load_bfloats,
    load_floats,
    load_spread,
    multiply_add,
    prefetch,
    registers,
    store_floats,
)

ROWS = 4  # at most that go together
SPLITS = {1: 4, 2: 2, 3: 2}  # by targets: sums that a row keeps, so that one need not wait for the last
STEP = 4  # inputs; divides by all of those
SHRINK_AHEAD, EXPAND_AHEAD = 4096, 512  # bytes
WIDE = 4  # vectors of columns


def _shrink_intrinsic(rows: int, targets: int) -> Any:
    splits = SPLITS[targets]

    @intrinsic
    def shrink(
        typing_context: Any, x0: Any, x1: Any, x2: Any, x3: Any, factor: Any, inputs: Any, out: Any, out_bytes: Any
    ) -> Any:
        """out[row, targets · 16] = x[row, inputs] times the factor [inputs, targets · 16].

        x0 … x3 are the rows' addresses, those behind `rows` unused; `inputs` is a multiple of STEP, and rows of `out`
        lie out_bytes apart.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            *xs, factor, inputs, out, out_bytes = arguments
            sums = [[registers(builder, targets) for _ in range(splits)] for _ in range(rows)]
            with cgutils.for_range_slice(builder, I64(0), inputs, I64(STEP)) as (first, _):
                offset = builder.mul(first, I64(2 * targets * LANES))
                places = [builder.add(x, builder.mul(first, I64(4))) for x in xs[:rows]]
                line = builder.add(factor, offset)
                for ahead in range(0, 2 * STEP * targets * LANES, 64):
                    prefetch(builder, line, SHRINK_AHEAD + ahead)
                for step in range(STEP):
                    vectors = [
                        load_bfloats(builder, line, 2 * LANES * (step * targets + target)) for target in range(targets)
                    ]
                    for row, place in enumerate(places):
                        one = load_spread(builder, place, 4 * step)
                        for vector, total in zip(vectors, sums[row][step % splits], strict=True):
                            builder.store(multiply_add(builder, one, vector, builder.load(total)), total)
            for row in range(rows):
                place = builder.add(out, builder.mul(out_bytes, I64(row)))
                for target in range(targets):
                    parts = [builder.load(split[target]) for split in sums[row]]
                    while len(parts) > 1:
                        parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
                    store_floats(builder, parts[0], place, 4 * LANES * target)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return shrink


def _expand_intrinsic(rows: int, vectors: int) -> Any:
    @intrinsic
    def expand(
        typing_context: Any, values: Any, factor: Any, width: Any, ranks: Any, y0: Any, y1: Any, y2: Any, y3: Any
    ) -> Any:
        """y[row, 16 · vectors columns] += Σ values[row, rank] · factor[rank], for the first `ranks` of 16.

        values: [rows, 16] float32; width: bytes from one rank of the factor to the next; y0 … y3: addresses of the
        rows' columns, those behind `rows` unused.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            values, factor, width, ranks, *ys = arguments
            sums = [registers(builder, vectors) for _ in range(rows)]
            for row in range(rows):
                for i in range(vectors):
                    builder.store(load_floats(builder, ys[row], 4 * LANES * i), sums[row][i])
            with cgutils.for_range(builder, ranks) as loop:
                line = builder.add(factor, builder.mul(loop.index, width))
                for ahead in range(0, 2 * LANES * vectors, 64):
                    prefetch(builder, line, EXPAND_AHEAD + ahead)
                columns = [load_bfloats(builder, line, 2 * LANES * i) for i in range(vectors)]
                place = builder.add(values, builder.mul(loop.index, I64(4)))
                for row in range(rows):
                    one = load_spread(builder, place, 4 * LANES * row)
                    for column, total in zip(columns, sums[row], strict=True):
                        builder.store(multiply_add(builder, one, column, builder.load(total)), total)
            for row in range(rows):
                for i in range(vectors):
                    store_floats(builder, builder.load(sums[row][i]), ys[row], 4 * LANES * i)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return expand


shrink_1x1, shrink_1x2, shrink_1x3 = (_shrink_intrinsic(1, targets) for targets in (1, 2, 3))  # rows × targets
shrink_2x1, shrink_2x2, shrink_2x3 = (_shrink_intrinsic(2, targets) for targets in (1, 2, 3))
shrink_4x1, shrink_4x2, shrink_4x3 = (_shrink_intrinsic(4, targets) for targets in (1, 2, 3))
expand_1x1, expand_2x1, expand_4x1 = (_expand_intrinsic(rows, 1) for rows in (1, 2, 4))  # rows × vectors
expand_1x4, expand_2x4, expand_4x4 = (_expand_intrinsic(rows, WIDE) for rows in (1, 2, 4))
