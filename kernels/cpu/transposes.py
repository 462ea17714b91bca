"""Matrices copied as their transposes; widened, multiplied and rounded on the way as torch would, bit for bit.

Torch's own copies of that kind move one number at a time, at a quarter of what memory gives.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from hotshoe.kernels.cpu.jit import f32, i64
from hotshoe.kernels.cpu.vectors import F32, I16, I32, I64, pointer

LINE = 64  # bytes: written at once, so that nobody has to read it first

FIELDS = ("source", "source_stride", "target", "target_stride", "columns", "rows")  # of the target; strides in bytes
WIDTH = len(FIELDS)

# What becomes of a number on the way.
_WORDS, _LONG_WORDS, _BF16_TO_BF16, _F16_TO_BF16, _BF16_TO_F32, _F16_TO_F32 = _CODES = range(6)
_MOVES = {2: _WORDS, 4: _LONG_WORDS}  # by a number's bytes
_CHANGES = {
    (torch.bfloat16, torch.bfloat16): _BF16_TO_BF16,
    (torch.float16, torch.bfloat16): _F16_TO_BF16,
    (torch.bfloat16, torch.float32): _BF16_TO_F32,
    (torch.float16, torch.float32): _F16_TO_F32,
}
# Not as fast as mathematics may be: a zero keeps its sign.
_exact = njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)


def change_of(source: torch.dtype, target: torch.dtype, *, scaled: bool) -> int:
    """How numbers of one dtype, perhaps multiplied, become those of another. Raises ValueError if they cannot here."""
    if source is target and not scaled and source.itemsize in _MOVES:
        return _MOVES[source.itemsize]
    if (source, target) not in _CHANGES:
        raise ValueError(f"no copies of {'scaled ' if scaled else ''}{source} as {target}")
    return _CHANGES[source, target]


def transpose_all(change: int, transposes: NDArray[np.int64], scales: NDArray[np.float32], source: int) -> None:
    """target[j, i] = scale · source[i, j], for i < columns and j < rows of each. Holds no GIL.

    Args:
        change: as `change_of` has it.
        transposes: [transposes, WIDTH], each as FIELDS has it; sources from the address `source` on.
        scales: [transposes]; nobody looks at them where numbers are only moved.

    Raises:
        ValueError: the arrays are not such.
    """
    if transposes.ndim != 2 or transposes.shape[1] != WIDTH or not transposes.flags.c_contiguous:
        raise ValueError(f"transposes: expected [transposes, {WIDTH}], contiguous, not {list(transposes.shape)}")
    if scales.shape != (len(transposes),) or not scales.flags.c_contiguous:
        raise ValueError(f"scales: expected [{len(transposes)}], contiguous, not {list(scales.shape)}")
    _transpose_all(change, transposes.ctypes.data, scales.ctypes.data, len(transposes), source)


def fill_zeros(spans: NDArray[np.int64]) -> None:
    """Zeros at spans of memory, [spans, 2]: an address, and how many times 8 bytes. Holds no GIL."""
    if spans.ndim != 2 or spans.shape[1] != 2 or not spans.flags.c_contiguous:
        raise ValueError(f"spans: expected [spans, 2], contiguous, not {list(spans.shape)}")
    _fill_zeros(spans.ctypes.data, len(spans))


def warm() -> None:
    """Compiles what is not compiled yet, so that nobody waits for it later."""
    fill_zeros(np.zeros((0, 2), np.int64))
    transpose_all(_WORDS, np.zeros((0, WIDTH), np.int64), np.zeros(0, np.float32), 0)


def _bytes_of(change: int) -> int:
    """Of a number, as it is written."""
    return 2 if change in (_WORDS, _BF16_TO_BF16, _F16_TO_BF16) else 4


_written_bytes = _exact(_bytes_of)


def _tile_intrinsic(size: int) -> Any:
    @intrinsic
    def copy_tile(
        typing_context: Any, change: Any, source: Any, source_stride: Any, target: Any, target_stride: Any, scale: Any
    ) -> Any:
        """target[j, i] = scale · source[i, j] for i, j < size; strides in bytes."""
        signature = types.void(*[types.int64] * 5, types.float32)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            change, *where, scale = arguments
            for code in range(len(_CODES)):
                if size * _bytes_of(code) <= LINE:
                    with builder.if_then(builder.icmp_signed("==", change, I64(code))):
                        _emit_tile(builder, code, size, where, scale)
            return context.get_dummy_value()

        return signature, generate

    return copy_tile


def _emit_tile(builder: Any, change: int, size: int, where: Sequence[Any], scale: Any) -> None:
    source, source_stride, target, target_stride = where
    rows = []
    for row in range(size):
        rows.append(_read(builder, change, size, builder.add(source, builder.mul(source_stride, I64(row))), scale))
    columns = _transposed(builder, rows)

    def write(past_caches: bool) -> None:
        for row, values in enumerate(columns):
            at = builder.add(target, builder.mul(target_stride, I64(row)))
            stored = builder.store(values, pointer(builder, at, 0, values.type))
            stored.align = LINE if past_caches else 2
            if past_caches:
                stored.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))

    if size * _bytes_of(change) < LINE:
        write(past_caches=False)
        return
    offset = builder.and_(builder.or_(target, target_stride), I64(LINE - 1))
    with builder.if_else(builder.icmp_signed("==", offset, I64(0))) as (aligned, otherwise):
        with aligned:
            write(past_caches=True)
        with otherwise:
            write(past_caches=False)


def _read(builder: Any, change: int, count: int, address: Any, scale: Any) -> Any:
    """Some numbers from an address, as they are to be written."""
    words, long_words, floats = (ir.VectorType(kind, count) for kind in (I16, I32, F32))
    kinds = {_LONG_WORDS: long_words, _F16_TO_BF16: ir.VectorType(ir.HalfType(), count)}
    kinds[_F16_TO_F32] = kinds[_F16_TO_BF16]
    kind = kinds.get(change, words)
    loaded = builder.load(pointer(builder, address, 0, kind))
    loaded.align = 2
    if change in (_WORDS, _LONG_WORDS):
        return loaded

    def each(value: int) -> Any:
        return ir.Constant(long_words, [value] * count)

    if kind is words:
        wide = builder.bitcast(builder.shl(builder.zext(loaded, long_words), each(16)), floats)
    else:
        wide = builder.fpext(loaded, floats)
    lane = builder.insert_element(ir.Constant(floats, ir.Undefined), scale, I32(0))
    scales = builder.shuffle_vector(lane, lane, each(0))
    bits = builder.bitcast(builder.fmul(wide, scales), long_words)
    if change in (_BF16_TO_F32, _F16_TO_F32):
        return bits
    odd = builder.and_(builder.lshr(bits, each(16)), each(1))  # to the nearest, ties to even
    return builder.trunc(builder.lshr(builder.add(bits, builder.add(odd, each(0x7FFF))), each(16)), words)


def _transposed(builder: Any, rows: list[Any]) -> list[Any]:
    """The columns of vectors that are as many as each has lanes: halves change places, then quarters, and so on."""
    count, span = len(rows), len(rows) // 2
    indices = ir.VectorType(I32, count)
    while span:
        low = ir.Constant(indices, [i if not i & span else count + i - span for i in range(count)])
        high = ir.Constant(indices, [i + span if not i & span else count + i for i in range(count)])
        turned = list(rows)
        for first in (row for row in range(count) if not row & span):
            pair = rows[first], rows[first + span]
            turned[first] = builder.shuffle_vector(*pair, low)
            turned[first + span] = builder.shuffle_vector(*pair, high)
        rows, span = turned, span // 2
    return rows


@intrinsic
def _finish(typing_context: Any) -> Any:
    """What was written past the caches is seen by others from now on."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse.sfence"), [])
        return context.get_dummy_value()

    return types.void(), generate


_copy_32, _copy_16, _copy_8, _copy_1 = (_tile_intrinsic(size) for size in (32, 16, 8, 1))


@_exact
def _fill_zeros(spans: int, count: int) -> None:
    for index in range(count):
        address, size = i64(spans + 16 * index, 2)
        i64(address, size)[:] = 0


@_exact
def _transpose_all(change: int, transposes: int, scales: int, count: int, source: int) -> None:
    for index in range(count):
        begin, source_stride, target, target_stride, columns, rows = i64(transposes + 8 * WIDTH * index, WIDTH)
        scale = f32(scales + 4 * index, 1)[0]
        size = LINE // _written_bytes(change)
        _in_tiles(change, size, source + begin, source_stride, target, target_stride, columns, rows, scale)
    _finish()


@_exact
def _in_tiles(
    change: int,
    size: int,
    source: int,
    source_stride: int,
    target: int,
    target_stride: int,
    columns: int,
    rows: int,
    scale: float,
) -> int:
    """In tiles of a size, 32, 16, 8 or 1, and what is left beside and below them in smaller ones."""
    read, written = 4 if change == _LONG_WORDS else 2, _written_bytes(change)
    whole_columns, whole_rows = columns // size * size, rows // size * size
    for column in range(0, whole_columns, size):
        for row in range(0, whole_rows, size):
            at, to = source + column * source_stride + read * row, target + row * target_stride + written * column
            if size == 32:
                _copy_32(change, at, source_stride, to, target_stride, scale)
            elif size == 16:
                _copy_16(change, at, source_stride, to, target_stride, scale)
            elif size == 8:
                _copy_8(change, at, source_stride, to, target_stride, scale)
            else:
                _copy_1(change, at, source_stride, to, target_stride, scale)
    if size == 1:
        return 0
    smaller = size // 2 if size > 8 else 1
    beside, below = columns - whole_columns, rows - whole_rows
    if beside:
        at, to = source + whole_columns * source_stride, target + written * whole_columns
        _in_tiles(change, smaller, at, source_stride, to, target_stride, beside, rows, scale)
    if below and whole_columns:
        at, to = source + read * whole_rows, target + whole_rows * target_stride
        _in_tiles(change, smaller, at, source_stride, to, target_stride, whole_columns, below, scale)
    return 0
