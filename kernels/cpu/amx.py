"""Matrix tiles (AMX): whether this CPU has them, and their instructions for compiled code.

A thread has eight tiles of up to 16 rows of 64 bytes. One instruction multiplies 16 rows by 32 inputs of 16 columns,
in bfloat16 with float32 sums. A row's sums do not depend on the other rows of its tile, nor on how many they are.
"""

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

ROWS = 16  # of a tile
TILE_BYTES = 1024
BLOCK_BYTES = 4 * TILE_BYTES  # 64 inputs by 32 columns: [input half, column half, 16 pairs of inputs, 16 columns, 2]
SUM_BYTES = 128  # of a row's sums with those columns: float32 [32]

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_ADDRESS = _I8.as_pointer()


@cache
def available() -> bool:
    """Whether this CPU multiplies bfloat16 tiles and the kernel lets this process do so, from now on."""
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell
        return False
    if not (features.get("amx-tile") and features.get("amx-bf16")):
        return False
    return ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA) == 0


def tile_config(short: int = ROWS) -> NDArray[np.uint8]:
    """The 64 bytes that `configure` loads: tiles 0 … 4 have 16 rows, 5 … 7 have `short`."""
    config = np.zeros(64, np.uint8)
    config[0] = 1  # palette
    config[16:32].view(np.uint16)[:] = 64  # bytes of a tile's row
    config[48:53] = ROWS
    config[53:56] = short
    return config


@intrinsic
def configure(typing_context: Any, config: Any) -> Any:
    """Shapes this thread's tiles; `release` must follow before anyone else's code uses tiles."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "ldtilecfg", (_ADDRESS,), builder.inttoptr(arguments[0], _ADDRESS))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def release(typing_context: Any) -> Any:
    """Gives this thread's tiles back."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "tilerelease", ())
        return context.get_dummy_value()

    return types.void(), generate


def clear_tile(builder: Any, tile: int) -> None:
    """tile = 0"""
    _call(builder, "tilezero", (_I8,), _I8(tile))


def load_tile(builder: Any, tile: int, address: Any, offset: int, stride: Any) -> None:
    """Rows from `address` + `offset`, `stride` bytes apart."""
    _call(builder, "tileloadd64", (_I8, _ADDRESS, _I64), _I8(tile), _place(builder, address, offset), stride)


def store_tile(builder: Any, tile: int, address: Any, offset: int, stride: Any) -> None:
    """Rows to `address` + `offset`, `stride` bytes apart."""
    _call(builder, "tilestored64", (_I8, _ADDRESS, _I64), _I8(tile), _place(builder, address, offset), stride)


def multiply_tiles(builder: Any, sums: int, inputs: int, weights: int) -> None:
    """sums += inputs · weights"""
    _call(builder, "tdpbf16ps", (_I8,) * 3, _I8(sums), _I8(inputs), _I8(weights))


def _place(builder: Any, address: Any, offset: int) -> Any:
    return builder.inttoptr(builder.add(address, _I64(offset)), _ADDRESS)


def _call(builder: Any, name: str, kinds: tuple[Any, ...], *arguments: Any) -> None:
    """Emits an instruction, or nothing where it does not exist: there the job says that it is not to be reached."""
    if available():
        function_type = ir.FunctionType(ir.VoidType(), kinds)
        function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}")
        builder.call(function, arguments)
