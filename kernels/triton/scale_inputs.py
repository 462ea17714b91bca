"""A linear's input as its rows' updates scale it: only steps that have such updates launch it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hotshoe.kernels.row_tiles import RowTiles
from hotshoe.kernels.site_updates import HAS_INPUT, UpdateVectors

BLOCK = 1024


def scale_inputs(
    x: Tensor, vectors: UpdateVectors, tiles: RowTiles, *, targets: int = 1, even_first: bool = False
) -> Tensor:
    """(1 + Σ w (s − 1)) ∘ x over each row's updates: [targets, rows, in_features]; rows without keep every bit.

    Args:
        x: [rows, in_features], columns contiguous.
        targets: how many of the site's targets to scale for; their scales may differ.
        even_first: x's even columns come before its odd ones, and so do the result's.
    Raises:
        ValueError: shapes disagree.
    """
    rows, features = x.shape
    if vectors.inputs.shape[1] < targets or vectors.inputs.shape[2] != features or x.stride(1) != 1:
        raise ValueError(f"x: expected [rows, {vectors.inputs.shape[2]}] for {targets} targets, not {list(x.shape)}")
    if tiles.row_entries.shape[0] != rows:
        raise ValueError(f"tiles: planned for {tiles.row_entries.shape[0]} rows, not {rows}")
    scaled = torch.empty((targets, rows, features), dtype=x.dtype, device=x.device)
    _scale_inputs[(rows, triton.cdiv(features, BLOCK), targets)](
        x, vectors.inputs, vectors.flags, tiles.entries, tiles.weights, tiles.row_entries, scaled,
        rows, x.stride(0), *vectors.inputs.stride()[:2], vectors.flags.stride(0),
        FEATURES=features, BLOCK=BLOCK, EVEN_FIRST=even_first, HAS_INPUT=HAS_INPUT, num_warps=4,
    )  # fmt: skip
    return scaled


@triton.jit(do_not_specialize=["rows"])
def _scale_inputs(
    x, inputs, flags, entries, weights, row_entries, scaled, rows, x_stride, input_stride, target_stride, flag_stride,
    FEATURES: tl.constexpr, BLOCK: tl.constexpr, EVEN_FIRST: tl.constexpr, HAS_INPUT: tl.constexpr,
):  # fmt: skip
    row, target = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < FEATURES
    place = column
    if EVEN_FIRST:
        place = (column % 2) * (FEATURES // 2) + column // 2
    scale = tl.full((BLOCK,), 1.0, tl.float32)
    for entry in range(tl.load(row_entries + row * 2), tl.load(row_entries + row * 2 + 1)):
        update = tl.load(entries + entry * 3 + 2).to(tl.int64)
        if (tl.load(flags + update * flag_stride) & HAS_INPUT) != 0:
            s = tl.load(inputs + update * input_stride + target * target_stride + column, mask=inside, other=1.0)
            scale += tl.load(weights + entry) * (s - 1.0)
    value = tl.load(x + row * x_stride + place, mask=inside, other=0.0).to(tl.float32) * scale
    tl.store(scaled + (target * rows + row) * FEATURES + place, value.to(scaled.dtype.element_ty), mask=inside)
