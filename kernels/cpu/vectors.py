"""LLVM's vectors of 16 numbers, as the intrinsics of compiled code load, spread, multiply and store them."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
FLOATS = ir.VectorType(F32, LANES)
_BITS = ir.VectorType(I16, LANES)  # of bfloat16
_HALVES = ir.VectorType(ir.HalfType(), LANES)
INTEGERS = ir.VectorType(I32, LANES)


# of 2**x for x in −½ … ½, the highest power first
_EXPONENTIAL = (
    1.535336188319500e-4,
    1.339887440266574e-3,
    9.618437357674640e-3,
    5.550332471162809e-2,
    2.402264791363012e-1,
    6.931472028550421e-1,
    1.0,
)


def pointer(builder: Any, address: Any, offset: int, element: Any) -> Any:
    """An address, an i64, and some bytes, as a pointer."""
    return builder.inttoptr(builder.add(address, I64(offset)), element.as_pointer())


def element_of(builder: Any, array: Any, index: Any, size: int, element: Any) -> Any:
    """A pointer to an array's element; `size` is its bytes."""
    return builder.inttoptr(builder.add(array, builder.mul(index, I64(size))), element.as_pointer())


def load_floats(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 float32."""
    loaded = builder.load(pointer(builder, address, offset, FLOATS))
    loaded.align = 4
    return loaded


def load_bfloats(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 bfloat16, as float32."""
    bits = builder.load(pointer(builder, address, offset, _BITS))
    bits.align = 2
    words = builder.shl(builder.zext(bits, INTEGERS), ir.Constant(INTEGERS, [16] * LANES))
    return builder.bitcast(words, FLOATS)


def load_halves(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 float16, as float32."""
    halves = builder.load(pointer(builder, address, offset, _HALVES))
    halves.align = 2
    return builder.fpext(halves, FLOATS)


def load_integers(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 int32."""
    loaded = builder.load(pointer(builder, address, offset, INTEGERS))
    loaded.align = 4
    return loaded


def spread_integer(builder: Any, value: Any) -> Any:
    """One int32 in every lane."""
    undefined = ir.Constant(INTEGERS, ir.Undefined)
    lane = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(lane, undefined, ir.Constant(INTEGERS, [0] * LANES))


def store_floats(builder: Any, values: Any, address: Any, offset: int = 0) -> None:
    """16 float32."""
    builder.store(values, pointer(builder, address, offset, FLOATS)).align = 4


def store_halves(builder: Any, values: Any, address: Any, offset: int = 0) -> None:
    """16 float32, as float16."""
    builder.store(builder.fptrunc(values, _HALVES), pointer(builder, address, offset, _HALVES)).align = 2


def spread(builder: Any, value: Any) -> Any:
    """One float32 in every lane."""
    undefined = ir.Constant(FLOATS, ir.Undefined)
    lane = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(lane, undefined, ir.Constant(INTEGERS, [0] * LANES))


def load_spread(builder: Any, address: Any, offset: int = 0) -> Any:
    """The float32 at an address in every lane."""
    return spread(builder, builder.load(pointer(builder, address, offset, F32)))


def multiply_add(builder: Any, left: Any, right: Any, total: Any) -> Any:
    """total + left · right, rounded once."""
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), "llvm.fma.v16f32")
    return builder.call(fma, [left, right, total])


def zeros() -> ir.Constant:
    """16 float32 that are 0."""
    return ir.Constant(FLOATS, [0.0] * LANES)


def registers(builder: Any, count: int) -> list[Any]:
    """Variables of 16 float32 that a loop keeps in registers, 0 at first."""
    variables = [cgutils.alloca_once(builder, FLOATS) for _ in range(count)]
    for variable in variables:
        builder.store(zeros(), variable)
    return variables


def prefetch(builder: Any, address: Any, offset: int = 0, *, level: int = 1) -> None:
    """Asks for the cache line of an address, which may lie anywhere, in the first or the second level's cache."""
    kinds = [I8.as_pointer(), *[I32] * 3]
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0")
    builder.call(function, [pointer(builder, address, offset, I8), *map(I32, (0, 4 - level, 1))])  # read, keep, data


def maximum(builder: Any, left: Any, right: Any) -> Any:
    """The larger in each lane; the right one where either is no number."""
    return builder.select(builder.fcmp_ordered(">", left, right), left, right)


def across_lanes(builder: Any, operation: str, values: Any) -> Any:
    """The sum ("fadd") or the largest ("fmax") of 16 lanes, in an order that is always the same."""
    if operation == "fmax":
        reduce = ir.FunctionType(F32, [FLOATS])
        function = cgutils.get_or_insert_function(builder.module, reduce, "llvm.vector.reduce.fmax.v16f32")
        return builder.call(function, [values])
    reduce = ir.FunctionType(F32, [F32, FLOATS])
    function = cgutils.get_or_insert_function(builder.module, reduce, "llvm.vector.reduce.fadd.v16f32")
    return builder.call(function, [ir.Constant(F32, -0.0), values], fastmath=("reassoc",))


def sum_lanes(builder: Any, vectors: Sequence[Any]) -> Any:
    """One vector whose lanes are the sums of 16 vectors' lanes."""
    span = LANES // 2
    while span:
        vectors = [_halve(builder, a, b, span) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        span //= 2
    return vectors[0]


def _halve(builder: Any, first: Any, second: Any, span: int) -> Any:
    """Adds the halves of each 2 · span lanes; what is left of both vectors lies one behind the other."""
    starts = range(0, 2 * LANES, 2 * span)
    low, high = (
        ir.Constant(INTEGERS, [start + half * span + i for start in starts for i in range(span)]) for half in (0, 1)
    )
    return builder.fadd(builder.shuffle_vector(first, second, low), builder.shuffle_vector(first, second, high))


def add_four(builder: Any, values: Any, lane: int, place: Any) -> None:
    """Adds lanes `lane` … `lane` + 3 to the four float32 at a pointer."""
    four = ir.VectorType(F32, 4)
    picked = builder.shuffle_vector(values, values, ir.Constant(ir.VectorType(I32, 4), [lane + i for i in range(4)]))
    target = builder.bitcast(place, four.as_pointer())
    before = builder.load(target)
    before.align = 4
    builder.store(builder.fadd(before, picked), target).align = 4


def exponential(builder: Any, values: Any) -> Any:
    """e**value up to 88, to a relative 4e-6; below −87 it is that of −87."""
    x = maximum(builder, values, _constant(-87.0))
    x = builder.fmul(x, _constant(1.4426950408889634))
    floor = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS]), "llvm.floor.v16f32")
    whole = builder.call(floor, [builder.fadd(x, _constant(0.5))])
    fraction, power = builder.fsub(x, whole), _constant(_EXPONENTIAL[0])
    for factor in _EXPONENTIAL[1:]:
        power = multiply_add(builder, power, fraction, _constant(factor))
    exponent = builder.add(builder.fptosi(whole, INTEGERS), ir.Constant(INTEGERS, [127] * LANES))
    scale = builder.bitcast(builder.shl(exponent, ir.Constant(INTEGERS, [23] * LANES)), FLOATS)
    return builder.fmul(power, scale)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(FLOATS, [value] * LANES)
