"""The two inner loops of attention on vector registers: a query against keys, and probabilities against values.

numba's own loops over a head's few dozen numbers spend most of their time before and after the vector part; here the
query, or the sum of the values, stays in registers while the positions go by.

Keys and values are float32, those of a position at `cache + row_bytes · slots[position]`. Sums run over positions in
order, and within a position over its lanes in an order that is always the same.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 16
AHEAD = 8  # positions
_F32, _I64 = ir.FloatType(), ir.IntType(64)
_VECTOR = ir.VectorType(_F32, LANES)
_SIGNATURE = types.void(*[types.int64] * 7)


def _scores_intrinsic(vectors: int) -> Any:
    @intrinsic
    def add_scores(
        typing_context: Any,
        query: Any,
        cache: Any,
        row_bytes: Any,
        slots: Any,
        first: Any,
        last: Any,
        scores: Any,
    ) -> Any:
        """scores[position] += Σ query · key, over 16 · vectors numbers of a head, for positions first … last - 1."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            query, cache, row_bytes, slots, first, last, scores = arguments
            queries = [_load(builder, query, 64 * i) for i in range(vectors)]
            add = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_F32, [_F32, _VECTOR]), "llvm.vector.reduce.fadd.v16f32"
            )
            with cgutils.for_range_slice(builder, first, last, _I64(1)) as (position, _):
                key = _row(builder, cache, row_bytes, slots, position)
                _prefetch(builder, vectors, cache, row_bytes, slots, position, last)
                total = builder.fmul(queries[0], _load(builder, key, 0))
                for i in range(1, vectors):
                    product = builder.fmul(queries[i], _load(builder, key, 64 * i), flags=("contract",))
                    total = builder.fadd(total, product, flags=("contract",))
                place = _element(builder, scores, position, 4, _F32)
                before = builder.load(place)
                builder.store(builder.call(add, [before, total], fastmath=("reassoc",)), place)
            return context.get_dummy_value()

        return _SIGNATURE, generate

    return add_scores


def _values_intrinsic(vectors: int) -> Any:
    @intrinsic
    def mix_values(
        typing_context: Any,
        probabilities: Any,
        cache: Any,
        row_bytes: Any,
        slots: Any,
        first: Any,
        last: Any,
        out: Any,
    ) -> Any:
        """out = Σ probabilities[position] · value, 16 · vectors numbers of a head, for positions first … last - 1."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            probabilities, cache, row_bytes, slots, first, last, out = arguments
            zero = ir.Constant(_VECTOR, [0.0] * LANES)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in range(vectors)]
            for register in sums:  # anew at each call: an alloca is the function's own
                builder.store(zero, register)
            with cgutils.for_range_slice(builder, first, last, _I64(1)) as (position, _):
                value = _row(builder, cache, row_bytes, slots, position)
                _prefetch(builder, vectors, cache, row_bytes, slots, position, last)
                one = builder.load(_element(builder, probabilities, position, 4, _F32))
                everywhere = _splat(builder, one)
                for i, register in enumerate(sums):
                    product = builder.fmul(everywhere, _load(builder, value, 64 * i), flags=("contract",))
                    builder.store(builder.fadd(builder.load(register), product, flags=("contract",)), register)
            for i, register in enumerate(sums):
                builder.store(builder.load(register), _vector_at(builder, out, 64 * i)).align = 4
            return context.get_dummy_value()

        return _SIGNATURE, generate

    return mix_values


def _row(builder: Any, cache: Any, row_bytes: Any, slots: Any, position: Any) -> Any:
    slot = builder.load(_element(builder, slots, position, 8, _I64))
    return builder.add(cache, builder.mul(slot, row_bytes))


def _prefetch(builder: Any, vectors: int, cache: Any, row_bytes: Any, slots: Any, position: Any, last: Any) -> None:
    """Asks for the lines of a later position: those of a head lie too far apart for the CPU to foresee."""
    later, end = builder.add(position, _I64(AHEAD)), builder.sub(last, _I64(1))
    later = builder.select(builder.icmp_signed("<", later, end), later, end)
    row = _row(builder, cache, row_bytes, slots, later)
    kinds = [ir.IntType(8).as_pointer(), *[ir.IntType(32)] * 3]
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0")
    for i in range(vectors):
        place = builder.inttoptr(builder.add(row, _I64(64 * i)), kinds[0])
        builder.call(function, [place, *(ir.IntType(32)(value) for value in (0, 3, 1))])  # read, keep, data


def _element(builder: Any, array: Any, index: Any, size: int, element: Any) -> Any:
    return builder.inttoptr(builder.add(array, builder.mul(index, _I64(size))), element.as_pointer())


def _vector_at(builder: Any, address: Any, offset: int) -> Any:
    return builder.inttoptr(builder.add(address, _I64(offset)), _VECTOR.as_pointer())


def _load(builder: Any, address: Any, offset: int) -> Any:
    loaded = builder.load(_vector_at(builder, address, offset))
    loaded.align = 4
    return loaded


def _splat(builder: Any, value: Any) -> Any:
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    lane = builder.insert_element(undefined, value, ir.IntType(32)(0))
    return builder.shuffle_vector(lane, undefined, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


add_scores_1, add_scores_4 = _scores_intrinsic(1), _scores_intrinsic(4)
mix_values_1, mix_values_4 = _values_intrinsic(1), _values_intrinsic(4)
