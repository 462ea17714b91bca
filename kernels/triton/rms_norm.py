"""Adds the residual and normalizes, one row a program; on request with even and odd columns apart."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, *, even_first: bool = False
) -> tuple[Tensor, Tensor]:
    """weight ∘ s / √(mean(s²) + eps) of s = x + residual, and s.

    Args:
        x, residual: [rows, features], contiguous, of one dtype; without a residual s is x.
        weight: [features].
        even_first: the normalized row's even columns come before its odd ones, as `nf4_linear` reads them fastest.
    Returns:
        Two tensors as x; the second is x itself if there is no residual. The sum is taken in float32 and normalized
        before it is rounded.
    Raises:
        ValueError: shapes disagree, tensors are not contiguous, or even_first with an odd number of columns.
    """
    rows, features = x.shape
    if weight.shape != (features,) or (residual is not None and residual.shape != x.shape):
        raise ValueError(f"weight, residual: expected [{features}] and {list(x.shape)}")
    if not x.is_contiguous() or not weight.is_contiguous() or (residual is not None and not residual.is_contiguous()):
        raise ValueError("x, residual, weight: expected contiguous tensors")
    if even_first and features % 2:
        raise ValueError(f"even_first: {features} columns do not halve")
    normed = torch.empty_like(x)
    total = x if residual is None else torch.empty_like(x)
    block = triton.next_power_of_2(features)
    _rms_norm[(rows,)](
        x, residual, weight, normed, total, eps, FEATURES=features, BLOCK=block, EVEN_FIRST=even_first,
        num_warps=min(16, max(1, block // 256)),
    )  # fmt: skip
    return normed, total


@triton.jit
def _rms_norm(
    x, residual, weight, normed, total, eps,
    FEATURES: tl.constexpr, BLOCK: tl.constexpr, EVEN_FIRST: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside = column < FEATURES
    start = tl.program_id(0).to(tl.int64) * FEATURES
    value = tl.load(x + start + column, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + start + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + start + column, value.to(total.dtype.element_ty), mask=inside)
    scale = 1.0 / tl.sqrt(tl.sum(value * value, axis=0) / FEATURES + eps)
    value = value * scale * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    place = column
    if EVEN_FIRST:
        place = (column % 2) * (FEATURES // 2) + column // 2
    tl.store(normed + start + place, value.to(normed.dtype.element_ty), mask=inside)
