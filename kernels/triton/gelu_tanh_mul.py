"""The gate of a feed-forward layer: gelu(gate) ∘ up; on request with even and odd columns apart."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


def gelu_tanh_mul(gate_up: Tensor, *, even_first: bool = False) -> Tensor:
    """gelu(gate) ∘ up, in its tanh form, of gate_up [rows, 2 · features], contiguous: [rows, features], in its dtype.

    Args:
        even_first: the result's even columns come before its odd ones, as `nf4_linear` reads them fastest.
    Raises:
        ValueError: columns do not halve, or gate_up is not contiguous.
    """
    if gate_up.ndim != 2 or gate_up.shape[1] % (4 if even_first else 2) or not gate_up.is_contiguous():
        raise ValueError(f"gate_up: expected contiguous [rows, 2 · features], not {list(gate_up.shape)}")
    rows, features = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, features), dtype=gate_up.dtype, device=gate_up.device)
    _gelu_tanh_mul[(rows, triton.cdiv(features, BLOCK))](
        gate_up, out, FEATURES=features, BLOCK=BLOCK, EVEN_FIRST=even_first, num_warps=4
    )
    return out


@triton.jit
def _gelu_tanh_mul(gate_up, out, FEATURES: tl.constexpr, BLOCK: tl.constexpr, EVEN_FIRST: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < FEATURES
    gate = tl.load(gate_up + row * 2 * FEATURES + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * FEATURES + FEATURES + column, mask=inside, other=0.0).to(tl.float32)
    # x / 2 · (1 + tanh(u)) is x · sigmoid(2 u)
    twice = gate * (1.5957691216057308 + 0.07135481627260025 * gate * gate)
    value = gate / (1.0 + tl.exp(-twice)) * up
    place = column
    if EVEN_FIRST:
        place = (column % 2) * (FEATURES // 2) + column // 2
    tl.store(out + row * FEATURES + place, value.to(out.dtype.element_ty), mask=inside)
