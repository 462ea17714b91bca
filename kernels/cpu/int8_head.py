"""The output head in 8 bits: half of what bfloat16 makes a step read, and twice as many products an instruction.

Weights are whole numbers of −127 … 127 with a scale for each token and 32 inputs; inputs are whole numbers of 16 bits
with a scale for each row, as two of 8. Products are exact in int32, so only the rounding of weights is left, and what
it can be off by is known: `likely_error`. Whoever needs to know which logit is the largest computes the few that come
that close again, from the weight itself.
"""

import math
from typing import Any

import torch
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from hotshoe.kernels.cpu.vectors import (
    F32,
    FLOATS,
    I32,
    I64,
    INTEGERS,
    LANES,
    across_lanes,
    load_floats,
    load_integers,
    maximum,
    multiply_add,
    pointer,
    prefetch,
    registers,
    spread,
    spread_integer,
    store_floats,
)

COLUMNS = 32  # tokens of a tile
DEPTH = 32  # inputs that share a scale
TILE_BYTES = COLUMNS * DEPTH + 4 * COLUMNS  # of a tile's block: weights, then scales
LARGEST_INPUT = 127 * 256  # whose two parts still fit 8 bits
AHEAD = 4096  # bytes of a tile that are asked for early
_GROUP = 4  # inputs that one instruction sums
_ZERO = 128  # weights are stored without a sign, that much too large
# A sum of roundings, each at most half a unit and as likely up as down, passes six deviations once in 10^8 sums
# (Hoeffding's bound), and then matters only if it is that of the likeliest or the next token.
_DEVIATIONS = 6.0


def available() -> bool:
    """Whether this CPU sums products of bytes (AVX512-VNNI)."""
    try:
        return bool(binding.get_host_cpu_features().get("avx512vnni"))
    except RuntimeError:  # LLVM cannot tell
        return False


def fits(weight: Tensor) -> bool:
    """Whether a weight [vocab, hidden] is whole tiles."""
    return weight.shape[0] % COLUMNS == 0 and weight.shape[1] % DEPTH == 0


def pack(weight: Tensor) -> Tensor:
    """A weight [vocab, hidden] that `fits`, as tiles: [vocab / 32, hidden / 32, TILE_BYTES] uint8."""
    vocab, hidden = weight.shape
    tiles = torch.empty(vocab // COLUMNS, hidden // DEPTH, TILE_BYTES, dtype=torch.uint8)
    for start in range(0, vocab, 4096):  # a part at a time: in float32 the whole would take four times its memory
        part = weight[start : start + 4096].float().unflatten(1, (-1, DEPTH))
        scales = part.abs().amax(dim=2) / 127
        codes = (part / scales.clamp_min(1e-30)[..., None]).round().to(torch.int16) + _ZERO
        blocks = codes.to(torch.uint8).view(-1, 2, LANES, hidden // DEPTH, DEPTH // _GROUP, _GROUP)
        blocks = blocks.permute(0, 3, 4, 1, 2, 5).reshape(-1, hidden // DEPTH, COLUMNS * DEPTH)
        scales = scales.view(-1, COLUMNS, hidden // DEPTH).transpose(1, 2).contiguous()
        into = tiles[start // COLUMNS : start // COLUMNS + len(blocks)]
        into[..., : COLUMNS * DEPTH] = blocks
        into[..., COLUMNS * DEPTH :] = scales.view(torch.uint8)
    return tiles


def likely_error(tiles: Tensor) -> Tensor:
    """[hidden / 32] float32 e: a logit of inputs x is off by √Σ e² ‖x of that block‖² at most, all but certainly."""
    scales = tiles[..., COLUMNS * DEPTH :].contiguous().view(torch.float32)
    return scales.amax(dim=(0, 2)) * (_DEVIATIONS / math.sqrt(4.0))


def _product_intrinsic(rows: int) -> Any:
    @intrinsic
    def multiply_tile(
        typing_context: Any,
        high: Any,
        low: Any,
        x_stride: Any,
        offsets: Any,
        offset_stride: Any,
        scales: Any,
        tile: Any,
        blocks: Any,
        out: Any,
        out_stride: Any,
        largest: Any,
        largest_stride: Any,
    ) -> Any:
        """out[row, 0 … 31] = scales[row] · Σ (256 · high + low)[row] · weight; largest[row] = the largest of them.

        high, low: int8 [rows, 32 · blocks], x_stride bytes apart; offsets: int32 [rows, blocks], what the weights'
        missing sign adds too much, negative; scales: float32 [rows]; other strides in bytes too.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            high, low, x_stride, offsets, offset_stride, scales, tile, blocks, *written = arguments
            out, out_stride, largest, largest_stride = written
            totals = [registers(builder, 2) for _ in range(rows)]
            with cgutils.for_range(builder, blocks) as loop:
                weights = builder.add(tile, builder.mul(loop.index, I64(TILE_BYTES)))
                first = builder.mul(loop.index, I64(DEPTH))
                parts = [
                    [builder.add(_of_row(builder, part, x_stride, row), first) for part in (high, low)]
                    for row in range(rows)
                ]
                sums = _block_sums(builder, weights, parts)
                place = builder.mul(loop.index, I64(4))
                for row in range(rows):
                    line = builder.add(_of_row(builder, offsets, offset_stride, row), place)
                    offset = spread_integer(builder, builder.load(pointer(builder, line, 0, I32)))
                    for half in (0, 1):
                        exact = builder.add(_joined(builder, sums[row][half]), offset)
                        scale = load_floats(builder, weights, COLUMNS * DEPTH + 64 * half)
                        total = totals[row][half]
                        floats = builder.sitofp(exact, FLOATS)
                        builder.store(multiply_add(builder, floats, scale, builder.load(total)), total)
            for row in range(rows):
                scale = spread(builder, builder.load(pointer(builder, scales, 4 * row, F32)))
                logits = [builder.fmul(builder.load(total), scale) for total in totals[row]]
                for half in (0, 1):
                    store_floats(builder, logits[half], _of_row(builder, out, out_stride, row), 64 * half)
                best = across_lanes(builder, "fmax", maximum(builder, *logits))
                builder.store(best, pointer(builder, _of_row(builder, largest, largest_stride, row), 0, F32))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), generate

    return multiply_tile


def _block_sums(builder: Any, weights: Any, parts: list[list[Any]]) -> list[list[list[Any]]]:
    """[row][half of the columns][part of the inputs]: 16 int32 each, of one block."""
    multiply = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(INTEGERS, [INTEGERS] * 3), "llvm.x86.avx512.vpdpbusd.512"
    )
    nothing = ir.Constant(INTEGERS, [0] * LANES)
    sums = [[[nothing, nothing] for _ in range(2)] for _ in parts]
    for group in range(DEPTH // _GROUP):
        for half in (0, 1):
            prefetch(builder, weights, 64 * (2 * group + half) + AHEAD)
        codes = [load_integers(builder, weights, 64 * (2 * group + half)) for half in (0, 1)]
        for row, addresses in enumerate(parts):
            for part, address in enumerate(addresses):
                four = spread_integer(builder, builder.load(pointer(builder, address, _GROUP * group, I32)))
                for half in (0, 1):
                    sums[row][half][part] = builder.call(multiply, [sums[row][half][part], codes[half], four])
    return sums


def _joined(builder: Any, parts: list[Any]) -> Any:
    """256 · high + low."""
    return builder.add(builder.shl(parts[0], ir.Constant(INTEGERS, [8] * LANES)), parts[1])


def _of_row(builder: Any, base: Any, stride: Any, row: int) -> Any:
    return builder.add(base, builder.mul(stride, I64(row)))


multiply_tile_1 = _product_intrinsic(1)
multiply_tile_2 = _product_intrinsic(2)
multiply_tile_4 = _product_intrinsic(4)
