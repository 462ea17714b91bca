"""The innermost NF4 product, written in LLVM's own words: 64 inputs by 32 columns, for up to eight rows at a time.

A 64-byte register of weights is looked up (vpermw) and multiplied by a broadcast pair of inputs (vdpbf16ps) for every
row of the block before the next is looked up. The C kernel of bitsandbytes does so for four rows; a batch of eight or
sixteen decodes spends half its time on looking up. Scales multiply the block's sums in float32, unrounded.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from hotshoe.kernels.cpu.vectors import FLOATS, I8, I16, I32, I64, load_floats, pointer, prefetch, store_floats
from hotshoe.kernels.weights import NF4_VALUES

PAIRS = 32  # pairs of inputs in a block
COLUMNS = 32
AHEAD = 4096  # bytes of codes: a product of several rows keeps the core too busy to see that it reads on


class _BFloat(ir.Type):
    """llvmlite has no bfloat; its name is all that is needed of it."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_CODES = ir.VectorType(I8, 32)
WORDS = ir.VectorType(I16, 32)
_LANES = ir.VectorType(I32, 16)
_BFLOATS = ir.VectorType(_BFloat(), 32)


def _nf4_values() -> ir.Constant:
    """The 16 values of NF4 as bfloat16 bits, twice: vpermw looks at five bits of an index."""
    import torch

    bits = NF4_VALUES.to(torch.bfloat16).view(torch.int16).tolist()
    return ir.Constant(WORDS, [ir.Constant(I16, value & 0xFFFF) for value in bits * 2])


def _block_intrinsic(rows: int) -> Any:
    @intrinsic
    def add_block(
        typing_context: Any, x: Any, x_stride: Any, codes: Any, scales: Any, out: Any, out_stride: Any
    ) -> Any:
        """out[row, 0…31] += scales[0…31] · Σ x[row, 0…63] w[0…63, 0…31]; strides in bytes, out in float32."""
        signature = types.void(*[types.int64] * 6)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _emit(builder, rows, *arguments)
            return context.get_dummy_value()

        return signature, generate

    return add_block


def _emit(builder: Any, rows: int, x: Any, x_stride: Any, codes: Any, scales: Any, out: Any, out_stride: Any) -> None:
    multiply = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(FLOATS, [FLOATS, _BFLOATS, _BFLOATS]), "llvm.x86.avx512bf16.dpbf16ps.512"
    )
    inputs = [builder.add(x, builder.mul(x_stride, I64(row))) for row in range(rows)]
    sums = [[ir.Constant(FLOATS, [0.0] * 16)] * 2 for _ in range(rows)]
    for pair in range(PAIRS):
        if pair % 2 == 0:
            prefetch(builder, codes, 32 * pair + AHEAD)
        weights = [builder.bitcast(half, _BFLOATS) for half in look_up(builder, codes, pair)]
        for row in range(rows):
            one = builder.load(pointer(builder, inputs[row], 4 * pair, I32))
            undefined = ir.Constant(_LANES, ir.Undefined)
            lane = builder.insert_element(undefined, one, I32(0))
            everywhere = builder.shuffle_vector(lane, undefined, ir.Constant(_LANES, [0] * 16))
            pairs = builder.bitcast(everywhere, _BFLOATS)
            sums[row] = [builder.call(multiply, [sums[row][half], pairs, weights[half]]) for half in (0, 1)]
    for half in (0, 1):
        scale = load_floats(builder, scales, 64 * half)
        for row in range(rows):
            address = builder.add(out, builder.mul(out_stride, I64(row)))
            before = load_floats(builder, address, 64 * half)
            store_floats(builder, builder.fadd(before, builder.fmul(sums[row][half], scale)), address, 64 * half)


def look_up(builder: Any, codes: Any, pair: int) -> tuple[Any, Any]:
    """The weights of a pair of inputs, [16 columns, 2] bfloat16 as words of 16 bits: columns 0 … 15, then 16 … 31."""
    function_type = ir.FunctionType(WORDS, [WORDS, WORDS])
    permute = cgutils.get_or_insert_function(builder.module, function_type, "llvm.x86.avx512.permvar.hi.512")
    found = builder.load(pointer(builder, codes, 32 * pair, _CODES))
    found.align = 1
    words, values = builder.zext(found, WORDS), _nf4_values()
    low, high = builder.and_(words, _splat(15)), builder.lshr(words, _splat(4))
    return builder.call(permute, [values, low]), builder.call(permute, [values, high])


def _splat(value: int) -> ir.Constant:
    return ir.Constant(WORDS, [ir.Constant(I16, value)] * 32)


add_block_1 = _block_intrinsic(1)
add_block_2 = _block_intrinsic(2)
add_block_4 = _block_intrinsic(4)
add_block_8 = _block_intrinsic(8)
