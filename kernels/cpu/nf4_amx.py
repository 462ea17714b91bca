"""The NF4 product on matrix tiles (AMX), where the CPU has them: 64 inputs by 32 columns, for 16 rows at a time.

Codes are looked up once, into bfloat16 tiles that stay in the first-level cache, and every group of 16 rows is
multiplied by those: no look-up is repeated for other rows, and one instruction does the work of 256.
Sums of a block leave the tiles as float32, to be multiplied by scales that are not rounded.

A row's sum runs over the same inputs in the same order in a group of 16 and in a shorter one at the end.
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

from hotshoe.kernels.cpu.nf4_block import CODES, PAIRS, SUMS, WORDS, load, nf4_values, pointer, splat

ROWS = 16  # of a tile
WEIGHT_BYTES = (
    4 * 1024
)  # of an unpacked block: four tiles, [input half, column half, 16 pairs of inputs, 16 columns, 2]
SUM_BYTES = 2 * 1024  # of a group's sums: float32 [16, 32]
TOTAL_BYTES = 128  # of a row's totals: float32 [32]

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18
_FULL = (0, 1, 2)  # tiles of sums of the column halves, and of inputs, for 16 rows
_REST = (5, 6, 7)  # the same for the rows that are left
_WEIGHTS = (3, 4)
_I8, _I32, _I64 = (ir.IntType(bits) for bits in (8, 32, 64))
_ADDRESS = _I8.as_pointer()


def scratch_bytes(num_rows: int) -> int:
    """Memory that a thread needs: one block is unpacked while another is multiplied by."""
    return 2 * WEIGHT_BYTES + SUM_BYTES + TOTAL_BYTES * num_rows


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


def tile_config(num_rows: int) -> NDArray[np.uint8]:
    """The 64 bytes that `configure` loads for steps of that many rows: 16 rows a group, the rest in the last."""
    config = np.zeros(64, np.uint8)
    config[0] = 1  # palette
    config[16:32].view(np.uint16)[:] = 64  # bytes of a tile's row
    rows = config[48:56]
    rows[:] = ROWS
    rows[list(_REST)] = num_rows % ROWS or ROWS
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


@intrinsic
def unpack_block(typing_context: Any, codes: Any, weights: Any) -> Any:
    """Looks up 64 inputs by 32 columns of codes, 1,024 bytes, into four tiles at `weights`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        look_up = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(WORDS, [WORDS, WORDS]), "llvm.x86.avx512.permvar.hi.512"
        )
        source, target = arguments
        values, low_mask, four = nf4_values(), splat(15), splat(4)
        for pair in range(PAIRS):
            words = builder.zext(load(builder, source, 32 * pair, CODES), WORDS)
            halves = (builder.and_(words, low_mask), builder.lshr(words, four))  # columns 0…15, 16…31
            for half, words_of_half in enumerate(halves):
                row = (pair // ROWS * 2 + half) * ROWS + pair % ROWS
                weights_of_half = builder.call(look_up, [values, words_of_half])
                builder.store(weights_of_half, pointer(builder, target, 64 * row, WORDS)).align = 64
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _add_intrinsic(anew: bool) -> Any:
    @intrinsic
    def add_scaled(typing_context: Any, sums: Any, scales: Any, out: Any) -> Any:
        """out[32] += sums[32] ∘ scales[32], or = if `anew`; float32. A loop would first ask whether they overlap."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            for half in (0, 1):
                total, scale = (load(builder, address, 64 * half, SUMS) for address in arguments[:2])
                product = builder.fmul(total, scale)
                place = pointer(builder, arguments[2], 64 * half, SUMS)
                if not anew:
                    product = builder.fadd(load(builder, arguments[2], 64 * half, SUMS), product)
                builder.store(product, place).align = 4
            return context.get_dummy_value()

        return types.void(*[types.int64] * 3), generate

    return add_scaled


@intrinsic
def copy_total(typing_context: Any, total: Any, out: Any) -> Any:
    """out[32] = total[32], float32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        for half in (0, 1):
            place = pointer(builder, arguments[1], 64 * half, SUMS)
            builder.store(load(builder, arguments[0], 64 * half, SUMS), place).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def _multiply_intrinsic(tiles: tuple[int, int, int]) -> Any:
    @intrinsic
    def multiply_block(typing_context: Any, x: Any, x_stride: Any, weights: Any, sums: Any) -> Any:
        """sums[rows, 32] float32 = x[rows, 64] bfloat16, x_stride bytes apart, times an unpacked block."""

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit_product(builder, tiles, *arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return multiply_block


def _emit_product(builder: Any, tiles: tuple[int, int, int], x: Any, x_stride: Any, weights: Any, sums: Any) -> None:
    *sum_tiles, inputs = tiles
    for tile in sum_tiles:
        _call(builder, "tilezero", (_I8,), _I8(tile))
    for depth_half in (0, 1):
        _move(builder, "tileloadd64", inputs, x, 64 * depth_half, x_stride)
        for half in (0, 1):
            _move(builder, "tileloadd64", _WEIGHTS[half], weights, 1024 * (2 * depth_half + half), _I64(64))
            _call(builder, "tdpbf16ps", (_I8,) * 3, _I8(sum_tiles[half]), _I8(inputs), _I8(_WEIGHTS[half]))
    for half in (0, 1):
        _move(builder, "tilestored64", sum_tiles[half], sums, 64 * half, _I64(128))


def _move(builder: Any, name: str, tile: int, address: Any, offset: int, stride: Any) -> None:
    place = builder.inttoptr(builder.add(address, _I64(offset)), _ADDRESS)
    _call(builder, name, (_I8, _ADDRESS, _I64), _I8(tile), place, stride)


def _call(builder: Any, name: str, kinds: tuple[Any, ...], *arguments: Any) -> None:
    """Emits an instruction, or nothing where it does not exist: there the job says that it is not to be reached."""
    if available():
        function_type = ir.FunctionType(ir.VoidType(), kinds)
        function = cgutils.get_or_insert_function(builder.module, function_type, f"llvm.x86.{name}")
        builder.call(function, arguments)


set_scaled, add_scaled = _add_intrinsic(True), _add_intrinsic(False)
multiply_rows = _multiply_intrinsic(_FULL)
multiply_rest = _multiply_intrinsic(_REST)
