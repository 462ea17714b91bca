"""NF4 bytes as a dense weight, for products of so many rows that decoding once and a library's GEMM are faster."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotshoe.kernels.triton.nf4_linear import TritonNf4, pack
from hotshoe.kernels.weights import Nf4Weight

BLOCKS = 8  # of 64 weights, in one program


def dequantize_nf4(weight: TritonNf4 | Nf4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out_features, in_features] that the codes stand for, rounded once, to `dtype`.

    Raises:
        ValueError: rows do not begin with a block.
    """
    if isinstance(weight, Nf4Weight):
        weight = pack([weight], weight.codes.device)
    out_features, in_features = weight.shape
    dense = torch.empty(weight.shape, dtype=dtype, device=weight.codes.device)
    _dequantize_nf4[(out_features, triton.cdiv(in_features // 64, BLOCKS))](
        weight.codes, weight.quant_map, weight.absmax, weight.absmax_code, weight.nested_absmax, weight.first_block,
        weight.offset, dense, IN=in_features, BLOCKS=BLOCKS, NESTED=weight.absmax_code is not None, num_warps=2,
    )  # fmt: skip
    return dense


@triton.jit
def _dequantize_nf4(
    codes, quant_map, absmax, absmax_code, nested_absmax, first_block, offset, dense,
    IN: tl.constexpr, BLOCKS: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    byte = tl.program_id(1) * BLOCKS * 32 + tl.arange(0, BLOCKS * 32)
    inside = byte < IN // 2
    pair = tl.load(codes + row * (IN // 2) + byte, mask=inside, other=0).to(tl.int32)
    block = byte // 32
    scale = tl.load(absmax + row * (IN // 64) + block, mask=inside, other=0)
    if NESTED:
        outer = tl.load(nested_absmax + ((tl.load(first_block + row) + block) >> 8), mask=inside, other=0.0)
        scale = tl.load(absmax_code + scale.to(tl.int32)) * outer + tl.load(offset + row)
    high, low = tl.load(quant_map + (pair >> 4)) * scale, tl.load(quant_map + (pair & 15)) * scale
    column = tl.program_id(1) * BLOCKS * 64 + tl.arange(0, BLOCKS * 64)
    values = tl.interleave(high, low).to(dense.dtype.element_ty)
    tl.store(dense + row * IN + column, values, mask=column < IN)
