"""NF4 linears on CPUs with AVX512-BF16, by the C kernel that bitsandbytes ships.

The kernel is called by ctypes: torch's dispatcher costs more than a small product. It reads tiles of 32 output
columns, 4 bits a weight, with one bfloat16 scale for 64 inputs.
"""

import ctypes
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from hotshoe.kernels.cpu import dense_linear
from hotshoe.kernels.cpu.dense_linear import PackedDense
from hotshoe.kernels.weights import BLOCK, NF4_VALUES, Nf4Weight

DENSE_ROWS = 48  # from here on a dense copy of the weight is faster, where there is one
_TILE = 32  # output columns of a tile


@dataclass(frozen=True, slots=True, eq=False)
class PackedNf4:
    """One or several NF4 weights of one input, in the kernel's order, their outputs side by side."""

    shape: tuple[int, int]  # out_features, in_features
    tiles: Tensor  # [out / 32, in / 2, 32] uint8: an even column's nibble low, …
    scales: Tensor  # [in / 64, out] bfloat16
    exact_scales: Tensor  # the same in float32
    addresses: tuple[int, int]  # of tiles and of scales
    dense: PackedDense | None = None  # the same weight in bfloat16, for many rows


@cache
def kernel() -> Callable[..., None] | None:
    """The C function, or None where this machine cannot run it."""
    found = importlib.util.find_spec("bitsandbytes")
    folders = (found.submodule_search_locations or ()) if found else ()
    path = next((p for f in folders if (p := Path(f) / "libbitsandbytes_cpu.so").exists()), None)
    if path is None:
        return None
    library = ctypes.CDLL(str(path))  # bound to the OpenMP that torch has loaded
    try:
        if not library.has_avx512bf16_cpu():
            return None
        function = library.gemv_4bit_inference_cpu_nf4_bf16
    except AttributeError:  # another release, without it
        return None
    function.argtypes = [ctypes.c_int64] * 3 + [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3
    function.restype = None
    return function


def fits(weight: Nf4Weight) -> bool:
    """Whether the kernel can run that weight: whole tiles, whole blocks, and the standard NF4 values."""
    whole = weight.out_features % _TILE == 0 and weight.in_features % BLOCK == 0
    return whole and torch.allclose(weight.quant_map, NF4_VALUES, atol=1e-6)


def pack(parts: Sequence[Nf4Weight], *, dense: PackedDense | None = None) -> PackedNf4:
    """Arranges weights of one input for the kernel. Their scales are rounded to bfloat16.

    With `dense`, the same weights dequantized, DENSE_ROWS rows and more are multiplied by those: there unpacking
    4 bits costs more than reading 16.
    """
    for part in parts:
        if not fits(part) or part.in_features != parts[0].in_features:
            raise ValueError(f"weight: {list(part.shape)} does not fit tiles of {_TILE} and blocks of {BLOCK}")
    tiles = torch.cat([_tiles(part) for part in parts])
    exact = torch.cat([part.scales().view(part.out_features, -1) for part in parts]).T.contiguous()
    scales = exact.bfloat16()
    shape = sum(part.out_features for part in parts), parts[0].in_features
    if dense is not None and dense.shape != shape:
        raise ValueError(f"dense: expected {list(shape)}, not {list(dense.shape)}")
    return PackedNf4(shape, tiles, scales, exact, (tiles.data_ptr(), scales.data_ptr()), dense)


def linear(x: Tensor, weight: PackedNf4) -> Tensor:
    """x [rows, in_features] times the weight's transpose, multiplied in bfloat16, in x's dtype."""
    if weight.dense is not None and x.shape[0] >= DENSE_ROWS:
        return dense_linear.linear(x, weight.dense)
    function = kernel()
    if function is None:
        raise RuntimeError("this machine has no AVX512-BF16 kernel for NF4")
    rows, (columns, depth) = x.shape[0], weight.shape
    inputs = x.to(torch.bfloat16)
    if inputs.stride(1) != 1:
        inputs = inputs.contiguous()
    out = torch.empty(rows, columns, dtype=torch.bfloat16)
    tiles, scales = weight.addresses
    if rows:
        function(
            rows, columns, depth, inputs.data_ptr(), tiles, scales, out.data_ptr(), BLOCK, inputs.stride(0), columns
        )
    return out.to(x.dtype)


def _tiles(weight: Nf4Weight) -> Tensor:
    """[out / 32, in / 2, 32] bytes; byte j of a pair of inputs holds nibble j low and nibble 32 + j high, where the
    64 nibbles of the pair run over the tile's columns, even input first in each."""
    nibbles = torch.stack((weight.codes >> 4, weight.codes & 0xF), dim=-1)
    nibbles = nibbles.view(weight.out_features // _TILE, _TILE, weight.in_features // 2, 2)
    nibbles = nibbles.transpose(1, 2).reshape(-1, weight.in_features // 2, 2 * _TILE)
    return (nibbles[..., _TILE:] << 4 | nibbles[..., :_TILE]).contiguous()
