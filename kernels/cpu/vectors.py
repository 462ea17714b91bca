"""LLVM's vectors of 16 numbers, as the intrinsics of compiled code load, spread, multiply and store them."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
FLOATS = ir.VectorType(F32, LANES)
_BITS = ir.VectorType(I16, LANES)  # of bfloat16
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_INTEGERS = ir.VectorType(I32, LANES)


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
    words = builder.shl(builder.zext(bits, _INTEGERS), ir.Constant(_INTEGERS, [16] * LANES))
    return builder.bitcast(words, FLOATS)


def load_halves(builder: Any, address: Any, offset: int = 0) -> Any:
    """16 float16, as float32."""
    halves = builder.load(pointer(builder, address, offset, _HALVES))
    halves.align = 2
    return builder.fpext(halves, FLOATS)


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
    return builder.shuffle_vector(lane, undefined, ir.Constant(_INTEGERS, [0] * LANES))


def load_spread(builder: Any, address: Any, offset: int = 0) -> Any:
    """The float32 at an address in every lane."""
    return spread(builder, builder.load(pointer(builder, address, offset, F32)))


def multiply_add(builder: Any, left: Any, right: Any, total: Any) -> Any:
    """total + left · right, rounded once."""
    fma = cgutils.get_or_insert_function(builder.module, ir.FunctionType(FLOATS, [FLOATS] * 3), "llvm.fma.v16f32")
    return builder.call(fma, [left, right, total])


def zeros() -> ir.Constant:
    return ir.Constant(FLOATS, [0.0] * LANES)


def registers(builder: Any, count: int) -> list[Any]:
    """Variables of 16 float32 that a loop keeps in registers, 0 at first."""
    variables = [cgutils.alloca_once(builder, FLOATS) for _ in range(count)]
    for variable in variables:
        builder.store(zeros(), variable)
    return variables


def prefetch(builder: Any, address: Any, offset: int = 0) -> None:
    """Asks for the cache line of an address, which may lie anywhere."""
    kinds = [I8.as_pointer(), *[I32] * 3]
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), kinds), "llvm.prefetch.p0")
    builder.call(function, [pointer(builder, address, offset, I8), *map(I32, (0, 3, 1))])  # read, keep, data
