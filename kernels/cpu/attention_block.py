"""The two inner loops of attention on vector registers: queries against keys, and probabilities against values.

numba's own loops over a head's few dozen numbers spend most of their time before and after the vector part; here the
queries, or the sums of the values, stay in registers while the positions go by. Query heads that share keys and values
go together, so that each is read and widened once for all of them.

Keys and values are float16, those of a position at `cache + row_bytes · slots[position]`; everything else is float32.
Sums run over positions in order, and within a position over its lanes in an order that is always the same.
"""

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hotshoe.kernels.cpu.vectors import (
    F32,
    I64,
    LANES,
    across_lanes,
    add_four,
    element_of,
    exponential,
    load_floats,
    load_halves,
    load_spread,
    maximum,
    multiply_add,
    prefetch,
    registers,
    spread,
    store_floats,
    store_halves,
    sum_lanes,
    zeros,
)

MEMBERS = 4  # query heads at most that go together
TOGETHER = 4  # positions whose products are summed over lanes at once
AHEAD = 32  # positions
_SIGNATURE = types.void(*[types.int64] * 9)


def _scores_intrinsic(members: int, vectors: int) -> Any:
    @intrinsic
    def add_scores(
        typing_context: Any,
        queries: Any,
        query_bytes: Any,
        keys: Any,
        row_bytes: Any,
        slots: Any,
        first: Any,
        last: Any,
        scores: Any,
        score_bytes: Any,
    ) -> Any:
        """scores[member, position] += Σ query · key, over 16 · vectors numbers of a head, for positions first … last−1.

        Members' queries lie query_bytes apart, and their scores score_bytes. Up to three scores behind the last
        position are written too.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            queries, query_bytes, keys, row_bytes, slots, first, last, scores, score_bytes = arguments
            query = [
                [load_floats(builder, _member(builder, queries, query_bytes, member), 64 * i) for i in range(vectors)]
                for member in range(members)
            ]
            with cgutils.for_range_slice(builder, first, last, I64(TOGETHER)) as (begin, _):
                sums = []
                for i in range(TOGETHER):
                    position = _at_most(builder, builder.add(begin, I64(i)), builder.sub(last, I64(1)))
                    row = _row(builder, keys, row_bytes, slots, position)
                    _prefetch_later(builder, vectors, keys, row_bytes, slots, position, last)
                    key = [load_halves(builder, row, 32 * part) for part in range(vectors)]
                    sums.append([_product(builder, query[member], key) for member in range(members)])
                lanes = [one[member] for member in range(members) for one in sums]
                totals = sum_lanes(builder, lanes + [zeros()] * (LANES - len(lanes)))
                for member in range(members):
                    place = element_of(builder, _member(builder, scores, score_bytes, member), begin, 4, F32)
                    add_four(builder, totals, TOGETHER * member, place)
            return context.get_dummy_value()

        return _SIGNATURE, generate

    return add_scores


def _values_intrinsic(members: int, vectors: int) -> Any:
    @intrinsic
    def mix_values(
        typing_context: Any,
        probabilities: Any,
        probability_bytes: Any,
        values: Any,
        row_bytes: Any,
        slots: Any,
        first: Any,
        last: Any,
        out: Any,
        out_bytes: Any,
    ) -> Any:
        """out[member] = Σ probabilities[member, position] · value, over 16 · vectors numbers of a head."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            probabilities, probability_bytes, values, row_bytes, slots, first, last, out, out_bytes = arguments
            sums = [registers(builder, vectors) for _ in range(members)]
            rows = [_member(builder, probabilities, probability_bytes, member) for member in range(members)]
            with cgutils.for_range_slice(builder, first, last, I64(1)) as (position, _):
                row = _row(builder, values, row_bytes, slots, position)
                _prefetch_later(builder, vectors, values, row_bytes, slots, position, last)
                value = [load_halves(builder, row, 32 * i) for i in range(vectors)]
                offset = builder.mul(position, I64(4))
                for member in range(members):
                    probability = load_spread(builder, builder.add(rows[member], offset))
                    for i, total in enumerate(sums[member]):
                        builder.store(multiply_add(builder, probability, value[i], builder.load(total)), total)
            for member in range(members):
                for i, total in enumerate(sums[member]):
                    store_floats(builder, builder.load(total), _member(builder, out, out_bytes, member), 64 * i)
            return context.get_dummy_value()

        return _SIGNATURE, generate

    return mix_values


def _product(builder: Any, query: list[Any], key: list[Any]) -> Any:
    """The lanes of query · key."""
    total = builder.fmul(query[0], key[0])
    for mine, other in zip(query[1:], key[1:], strict=True):
        total = multiply_add(builder, mine, other, total)
    return total


def _at_most(builder: Any, value: Any, limit: Any) -> Any:
    return builder.select(builder.icmp_signed("<", value, limit), value, limit)


def _member(builder: Any, base: Any, stride: Any, member: int) -> Any:
    return builder.add(base, builder.mul(stride, I64(member)))


def _row(builder: Any, cache: Any, row_bytes: Any, slots: Any, position: Any) -> Any:
    """Where a position's key or value lies."""
    slot = builder.load(element_of(builder, slots, position, 8, I64))
    return builder.add(cache, builder.mul(slot, row_bytes))


def _prefetch_later(
    builder: Any, vectors: int, cache: Any, row_bytes: Any, slots: Any, position: Any, last: Any
) -> None:
    """Asks for the lines of a later position: those of a head lie too far apart for the CPU to foresee."""
    later = _at_most(builder, builder.add(position, I64(AHEAD)), builder.sub(last, I64(1)))
    row = _row(builder, cache, row_bytes, slots, later)
    for line in range(0, 2 * LANES * vectors, 64):
        prefetch(builder, row, line)


@intrinsic
def softmax(typing_context: Any, scores: Any, vectors: Any) -> Any:
    """scores[16 · vectors] = e^(score − the largest); returns their sum. Masked scores are −∞."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scores, vectors = arguments
        largest, total = registers(builder, 2)
        builder.store(load_floats(builder, scores), largest)
        with cgutils.for_range(builder, vectors) as loop:
            one = load_floats(builder, builder.add(scores, builder.mul(loop.index, I64(4 * LANES))))
            builder.store(maximum(builder, builder.load(largest), one), largest)
        limit = spread(builder, across_lanes(builder, "fmax", builder.load(largest)))
        with cgutils.for_range(builder, vectors) as loop:
            place = builder.add(scores, builder.mul(loop.index, I64(4 * LANES)))
            power = exponential(builder, builder.fsub(load_floats(builder, place), limit))
            store_floats(builder, power, place)
            builder.store(builder.fadd(builder.load(total), power), total)
        return across_lanes(builder, "fadd", builder.load(total))

    return types.float32(*[types.int64] * 2), generate


@intrinsic
def narrow(typing_context: Any, source: Any, target: Any, vectors: Any) -> Any:
    """target[16 · vectors] float16 = source[16 · vectors] float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target, vectors = arguments
        with cgutils.for_range(builder, vectors) as loop:
            floats = load_floats(builder, builder.add(source, builder.mul(loop.index, I64(4 * LANES))))
            store_halves(builder, floats, builder.add(target, builder.mul(loop.index, I64(2 * LANES))))
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


add_scores_1, mix_values_1 = _scores_intrinsic(1, 1), _values_intrinsic(1, 1)  # 16 numbers of one head
add_scores_1x4, mix_values_1x4 = _scores_intrinsic(1, 4), _values_intrinsic(1, 4)  # 64 numbers of one, two, … heads
add_scores_2x4, mix_values_2x4 = _scores_intrinsic(2, 4), _values_intrinsic(2, 4)
add_scores_3x4, mix_values_3x4 = _scores_intrinsic(3, 4), _values_intrinsic(3, 4)
add_scores_4x4, mix_values_4x4 = _scores_intrinsic(4, 4), _values_intrinsic(4, 4)
