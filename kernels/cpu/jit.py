"""What compiled kernels need and numba does not give: addresses as arrays, atomics, fast exponentials, bfloat16.

Compiled code holds no GIL, and numba keeps it on disk, so that only the first start after an installation compiles.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic


def _cache_directory() -> Path:
    """A directory for these very sources: numba notices that a function's own file changed, not those it calls."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    beside = Path(__file__).parent
    root = beside / "__pycache__" if os.access(beside, os.W_OK) else Path.home() / ".cache" / "hotshoe"
    return root / f"compiled-{digest[:16]}"


config.CACHE_DIR = str(_cache_directory())
_FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}  # sums may be vectorised; NaN and infinity stay what they are
compiled = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy", boundscheck=False)
inlined = njit(nogil=True, cache=True, fastmath=_FAST, error_model="numpy", boundscheck=False, inline="always")

_WORD = ir.IntType(64)


def _pointer_intrinsic(element: Any) -> Any:
    @intrinsic
    def convert(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(element)))

        return types.CPointer(element)(types.int64), generate

    return convert


_f32_pointer = _pointer_intrinsic(types.float32)
_u16_pointer = _pointer_intrinsic(types.uint16)
_i8_pointer = _pointer_intrinsic(types.int8)
_i32_pointer = _pointer_intrinsic(types.int32)
_i64_pointer = _pointer_intrinsic(types.int64)


@inlined
def f32(address: int, size: int) -> Any:
    """The `size` float32 numbers at an address."""
    return carray(_f32_pointer(address), size)


@inlined
def u16(address: int, size: int) -> Any:
    """The `size` bfloat16 numbers at an address, as their bits."""
    return carray(_u16_pointer(address), size)


@inlined
def i8(address: int, size: int) -> Any:
    """The `size` int8 numbers at an address."""
    return carray(_i8_pointer(address), size)


@inlined
def i32(address: int, size: int) -> Any:
    """The `size` int32 numbers at an address."""
    return carray(_i32_pointer(address), size)


@inlined
def i64(address: int, size: int) -> Any:
    """The `size` int64 numbers at an address."""
    return carray(_i64_pointer(address), size)


@intrinsic
def atomic_add(typing_context: Any, address: Any, value: Any) -> Any:
    """Adds to the int64 at an address, before and after everything else; returns what was there."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def atomic_load(typing_context: Any, address: Any) -> Any:
    """The int64 at an address; what was written before it was stored is seen after."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), generate


@intrinsic
def pause(typing_context: Any) -> Any:
    """Tells the core that it is waiting for another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function_type = ir.FunctionType(ir.VoidType(), [])
        builder.call(cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.sse2.pause"), [])
        return context.get_dummy_value()

    return types.void(), generate


def _call_intrinsic(arity: int) -> Any:
    """Calls the C function at an address with int64 arguments. An address may be cached; a ctypes function may not."""

    @intrinsic
    def call(typing_context: Any, function: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            function_type = ir.FunctionType(_WORD, [_WORD] * arity)
            pointer = builder.inttoptr(values[0], function_type.as_pointer())
            return builder.call(pointer, [builder.extract_value(values[1], i) for i in range(arity)])

        return types.int64(types.int64, types.UniTuple(types.int64, arity)), generate

    return call


call_1 = _call_intrinsic(1)
call_6 = _call_intrinsic(6)


@inlined
def from_bf16(bits: Any) -> Any:
    """bfloat16 bits → float32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@inlined
def to_bf16(value: Any) -> Any:
    """float32 → bfloat16 bits, to the nearest, ties to even."""
    bits = np.float32(value).view(np.uint32)
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@inlined
def exp(value: Any) -> Any:
    """e**value for float32 up to 88, to a relative 4e-6; vectorises, which libm's does not."""
    x = max(np.float32(value), np.float32(-87.0)) * np.float32(1.4426950408889634)
    whole = np.floor(x + np.float32(0.5))
    f = x - whole
    p = np.float32(1.535336188319500e-4)
    p = p * f + np.float32(1.339887440266574e-3)
    p = p * f + np.float32(9.618437357674640e-3)
    p = p * f + np.float32(5.550332471162809e-2)
    p = p * f + np.float32(2.402264791363012e-1)
    p = p * f + np.float32(6.931472028550421e-1)
    p = p * f + np.float32(1.0)
    power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return p * power
