"""NF4 bytes as a dense weight, for products of so many rows that decoding once and a library's GEMM are faster."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotshoe.kernels.triton.nf4_linear import TritonNf4, pack
from hotshoe.kernels.weights import Nf4Weight

BLOCK_BYTES = 2048  # of one program


def dequantize_nf4(weight: TritonNf4 | Nf4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out_features, in_features] that the codes stand for, rounded once, to `dtype`.

    Raises:
        ValueError: rows do not begin with a block.
    """
    if isinstance(weight, Nf4Weight):
        weight = pack([weight], weight.codes.device)
    in_features = weight.shape[1]
    dense = torch.empty(weight.shape, dtype=dtype, device=weight.codes.device)
    _dequantize_nf4[(triton.cdiv(dense.numel() // 2, BLOCK_BYTES),)](
        weight.codes, weight.quant_map, weight.absmax, weight.absmax_code, weight.nested_absmax, weight.first_block,
        weight.offset, dense, dense.numel() // 2, IN=in_features, BLOCK_BYTES=BLOCK_BYTES,
        NESTED=weight.absmax_code is not None, num_warps=8,
    )  # fmt: skip
    return dense


@triton.jit
def _dequantize_nf4(
    codes, quant_map, absmax, absmax_code, nested_absmax, first_block, offset, dense, num_bytes,
    IN: tl.constexpr, BLOCK_BYTES: tl.constexpr, NESTED: tl.constexpr,
):  # fmt: skip
    start = tl.program_id(0).to(tl.int64) * BLOCK_BYTES
    byte = start + tl.arange(0, BLOCK_BYTES)
    inside = byte < num_bytes
    pair = tl.load(codes + byte, mask=inside, other=0).to(tl.int32)
    scale = tl.load(absmax + byte // 32, mask=inside, other=0)
    if NESTED:
        row, block = byte // (IN // 2), byte // 32 % (IN // 64)
        place = tl.load(first_block + row, mask=inside, other=0) + block
        outer = tl.load(nested_absmax + (place >> 8), mask=inside, other=0.0)
        scale = tl.load(absmax_code + scale.to(tl.int32)) * outer + tl.load(offset + row, mask=inside, other=0.0)
    high, low = tl.load(quant_map + (pair >> 4)) * scale, tl.load(quant_map + (pair & 15)) * scale
    place = 2 * start + tl.arange(0, 2 * BLOCK_BYTES)
    tl.store(dense + place, tl.interleave(high, low).to(dense.dtype.element_ty), mask=place < 2 * num_bytes)
