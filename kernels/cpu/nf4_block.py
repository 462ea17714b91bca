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

from hotshoe.kernels.weights import NF4_VALUES

PAIRS = 32  # pairs of inputs in a block
COLUMNS = 32

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F32 = ir.FloatType()


class _BFloat(ir.Type):
    """llvmlite has no bfloat; its name is all that is needed of it."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


CODES = ir.VectorType(_I8, 32)
WORDS = ir.VectorType(_I16, 32)
_LANES = ir.VectorType(_I32, 16)
_BFLOATS = ir.VectorType(_BFloat(), 32)
SUMS = ir.VectorType(_F32, 16)


def nf4_values() -> ir.Constant:
    """The 16 values of NF4 as bfloat16 bits, twice: vpermw looks at five bits of an index."""
    import torch

    bits = NF4_VALUES.to(torch.bfloat16).view(torch.int16).tolist()
    return ir.Constant(WORDS, [ir.Constant(_I16, value & 0xFFFF) for value in bits * 2])


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
    look_up = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(WORDS, [WORDS, WORDS]), "llvm.x86.avx512.permvar.hi.512"
    )
    multiply = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(SUMS, [SUMS, _BFLOATS, _BFLOATS]), "llvm.x86.avx512bf16.dpbf16ps.512"
    )
    values, low_mask, four = nf4_values(), splat(15), splat(4)
    inputs = [builder.add(x, builder.mul(x_stride, _I64(row))) for row in range(rows)]
    sums = [[ir.Constant(SUMS, [0.0] * 16)] * 2 for _ in range(rows)]
    for pair in range(PAIRS):
        words = builder.zext(load(builder, codes, 32 * pair, CODES), WORDS)
        halves = (builder.and_(words, low_mask), builder.lshr(words, four))  # columns 0…15, 16…31
        weights = [builder.bitcast(builder.call(look_up, [values, half]), _BFLOATS) for half in halves]
        for row in range(rows):
            one = load(builder, inputs[row], 4 * pair, _I32)
            undefined = ir.Constant(_LANES, ir.Undefined)
            lane = builder.insert_element(undefined, one, _I32(0))
            everywhere = builder.shuffle_vector(lane, undefined, ir.Constant(_LANES, [0] * 16))
            pairs = builder.bitcast(everywhere, _BFLOATS)
            sums[row] = [builder.call(multiply, [sums[row][half], pairs, weights[half]]) for half in (0, 1)]
    for half in (0, 1):
        scale = load(builder, scales, 64 * half, SUMS)
        for row in range(rows):
            address = builder.add(out, builder.mul(out_stride, _I64(row)))
            place = pointer(builder, address, 64 * half, SUMS)
            before = builder.load(place)
            before.align = 4
            builder.store(builder.fadd(before, builder.fmul(sums[row][half], scale)), place).align = 4


def splat(value: int) -> ir.Constant:
    """That value in each of 32 words."""
    return ir.Constant(WORDS, [ir.Constant(_I16, value)] * 32)


def pointer(builder: Any, address: Any, offset: int, element: Any) -> Any:
    return builder.inttoptr(builder.add(address, _I64(offset)), element.as_pointer())


def load(builder: Any, address: Any, offset: int, element: Any) -> Any:
    """The vector that lies there; only codes may lie anywhere."""
    loaded = builder.load(pointer(builder, address, offset, element))
    loaded.align = 1 if element is CODES else 4
    return loaded


add_block_1 = _block_intrinsic(1)
add_block_2 = _block_intrinsic(2)
add_block_4 = _block_intrinsic(4)
add_block_8 = _block_intrinsic(8)
