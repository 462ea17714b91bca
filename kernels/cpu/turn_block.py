"""Some rows times one matrix on vector registers: each row's sums run over inputs in order, whatever the others are."""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hotshoe.kernels.cpu.vectors import (
    I64,
    LANES,
    load_floats,
    load_spread,
    multiply_add,
    prefetch,
    registers,
    store_floats,
)

AHEAD = 4096  # bytes


def _turn_intrinsic(rows: int, vectors: int) -> Any:
    @intrinsic
    def turn(typing_context: Any, x: Any, x_bytes: Any, matrix: Any, matrix_bytes: Any, inputs: Any, out: Any) -> Any:
        """out[row, 16 · vectors columns] = Σ x[row, k] · matrix[k], all float32; rows lie x_bytes apart."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, x_bytes, matrix, matrix_bytes, inputs, out = arguments
            starts = [builder.add(x, builder.mul(x_bytes, I64(row))) for row in range(rows)]
            sums = [registers(builder, vectors) for _ in range(rows)]
            with cgutils.for_range(builder, inputs) as loop:
                line = builder.add(matrix, builder.mul(loop.index, matrix_bytes))
                for vector in range(vectors):
                    prefetch(builder, line, AHEAD + 64 * vector)
                columns = [load_floats(builder, line, 4 * LANES * vector) for vector in range(vectors)]
                place = builder.mul(loop.index, I64(4))
                for start, totals in zip(starts, sums, strict=True):
                    one = load_spread(builder, builder.add(start, place))
                    for column, total in zip(columns, totals, strict=True):
                        builder.store(multiply_add(builder, one, column, builder.load(total)), total)
            for row, totals in enumerate(sums):
                for vector, total in enumerate(totals):
                    place = builder.add(out, builder.mul(x_bytes, I64(row)))
                    store_floats(builder, builder.load(total), place, 4 * LANES * vector)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return turn


turn_1x1, turn_2x1, turn_4x1 = (_turn_intrinsic(rows, 1) for rows in (1, 2, 4))  # rows × vectors
turn_1x2, turn_2x2, turn_4x2 = (_turn_intrinsic(rows, 2) for rows in (1, 2, 4))
