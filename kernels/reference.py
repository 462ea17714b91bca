"""What each operation means, in plain torch: the definition, the oracle, and the reference backend.

Every function computes in the dtype of its inputs, so tests call them in float64.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hotshoe.kernels.attention_batch import AttentionBatch
from hotshoe.kernels.weights import BLOCK, Nf4Weight


def dequantize_nf4(weight: Nf4Weight, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [out_features, in_features] that the codes stand for: quant_map[code] · scale of its block."""
    quant_map, numel = weight.quant_map.to(dtype), weight.out_features * weight.in_features
    pairs = torch.cartesian_prod(quant_map, quant_map)  # [256, 2]: what a byte stands for, high nibble first
    values = F.embedding(weight.codes.int(), pairs).view(-1)[:numel]
    scales = weight.scales().to(dtype)
    if numel % BLOCK == 0:
        values = values.view(-1, BLOCK).mul_(scales[:, None])
    else:  # the last block is not whole
        values = values * scales.repeat_interleave(BLOCK)[:numel]
    return values.view(weight.out_features, weight.in_features)


def nf4_linear(x: Tensor, weight: Nf4Weight) -> Tensor:
    """x [rows, in_features] times the transpose of the dequantized weight: [rows, out_features]."""
    return dense_linear(x, dequantize_nf4(weight, x.dtype))


def dense_linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [rows, in_features] times the transpose of weight [out_features, in_features]."""
    return F.linear(x, weight.to(x.dtype))


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight · x / √(mean(x²) + eps), over the last dimension."""
    return weight.to(x.dtype) * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [rows, heads, head_dim] rotated: x ∘ cos + (−x₂, x₁) ∘ sin, with x₁, x₂ the halves of a head.

    cos and sin are [rows, rotary_dim], both halves equal; only the first rotary_dim of a head's dimensions turn.
    """
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    swapped = torch.cat((-second, first), dim=-1)
    turned = turned * cos.to(x.dtype)[:, None] + swapped * sin.to(x.dtype)[:, None]
    return torch.cat((turned, rest), dim=-1)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) · up of gate_up [rows, 2·features]: [rows, features]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) · up, with gelu(x) = x / 2 · (1 + tanh(√(2 / π) · (x + 0.044715 x³)))."""
    gate, up = gate_up.chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return gate / 2 * (1 + torch.tanh(inner)) * up


def paged_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    batch: AttentionBatch,
    *,
    scale: float,
    window: int | None,
    cap: float | None = None,
) -> Tensor:
    """Each row's attention over its own sequence's cached keys and values, one sequence after the other.

    Args:
        query: [rows, heads, head_dim].
        keys, values: [num_slots, kv_heads, head_dim]; head h reads kv head h // (heads / kv_heads).
        window: a row sees that many positions, itself included; None is all.
        cap: scores become cap · tanh(score / cap); None leaves them as they are.
    Returns:
        [rows, heads, head_dim].
    """
    out = torch.empty_like(query)
    for row in range(batch.num_decodes):
        slots = batch.decode_slots[row, : int(batch.decode_lengths[row])]
        out[row : row + 1] = _attend(query[row : row + 1], keys[slots], values[slots], scale, window, cap)
    for segment in batch.prefills:
        rows = slice(segment.start, segment.end)
        out[rows] = _attend(query[rows], keys[segment.slots], values[segment.slots], scale, window, cap)
    return out


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, cap: float | None) -> Tensor:
    """The last len(query) positions of one sequence over all its positions."""
    group = query.shape[1] // keys.shape[1]
    keys = keys.to(query.dtype).repeat_interleave(group, dim=1)
    values = values.to(query.dtype).repeat_interleave(group, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, keys) * scale
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    position = torch.arange(keys.shape[0], device=query.device)
    behind = position[-query.shape[0] :, None] - position  # [rows, context]: how far back a position lies
    hidden = (behind < 0) if window is None else (behind < 0) | (behind >= window)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, values)
