"""Between the qkv linear and attention, in one launch: qk-norm, rotary embedding, and the write into the cache."""

import torch
import triton
import triton.language as tl
from torch import Tensor


def rope_write_kv(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    kv: Tensor,
    slots: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Normalizes and rotates queries and keys, and writes keys and values into the cache.

    Args:
        qkv: [rows, (heads + 2 · kv_heads) · head_dim], contiguous.
        cos, sin: [rows, rotary_dim], contiguous; both halves of a row equal, of which the first is read. What of a
            head is behind its first rotary_dim dimensions is not turned.
        kv: [num_slots, 2, kv_heads, head_dim], contiguous; changed in place.
        slots: [rows] int32 or int64, all different: where each row's key and value go; nowhere if negative.
        q_weight, k_weight: [head_dim] of the norms, both or neither.
    Returns:
        The queries, [rows, heads, head_dim] in qkv's dtype.
    Raises:
        ValueError: shapes disagree or tensors are not contiguous.
    """
    rows, (_, two, kv_heads, head_dim) = qkv.shape[0], kv.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    if two != 2 or heads < 1 or qkv.shape[1] != (heads + 2 * kv_heads) * head_dim or head_dim % 2:
        raise ValueError(f"qkv: {list(qkv.shape)} does not fit kv {list(kv.shape)}")
    rotary_dim = cos.shape[-1]
    if not 0 < rotary_dim <= head_dim or rotary_dim % 2:
        raise ValueError(f"cos: expected an even number of a head's {head_dim} dimensions, not {rotary_dim}")
    if cos.shape != (rows, rotary_dim) or sin.shape != cos.shape or slots.shape != (rows,):
        raise ValueError(f"cos, sin, slots: expected [{rows}, {rotary_dim}] twice and [{rows}]")
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight, k_weight: expected both or neither")
    if not all(t.is_contiguous() for t in (qkv, cos, sin, kv, slots)):
        raise ValueError("qkv, cos, sin, kv, slots: expected contiguous tensors")
    query = torch.empty((rows, heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    _rope_write_kv[(rows, heads + 2 * kv_heads)](
        qkv, cos, sin, query, kv, slots, q_weight, k_weight, eps,
        HEADS=heads, KV_HEADS=kv_heads, HALF=rotary_dim // 2, BLOCK=triton.next_power_of_2(rotary_dim // 2),
        REST=head_dim - rotary_dim, REST_BLOCK=triton.next_power_of_2(max(1, head_dim - rotary_dim)), num_warps=1,
    )  # fmt: skip
    return query


@triton.jit
def _rope_write_kv(
    qkv, cos, sin, query, kv, slots, q_weight, k_weight, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    REST: tl.constexpr, REST_BLOCK: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    i = tl.arange(0, BLOCK)
    inside = i < HALF
    dim: tl.constexpr = 2 * HALF + REST
    source = qkv + (row * (HEADS + 2 * KV_HEADS) + head) * dim
    first = tl.load(source + i, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF + i, mask=inside, other=0.0).to(tl.float32)
    if REST > 0:
        j = tl.arange(0, REST_BLOCK)
        behind = j < REST
        rest = tl.load(source + 2 * HALF + j, mask=behind, other=0.0).to(tl.float32)
    if head < HEADS + KV_HEADS:  # a query or a key
        if q_weight is not None:
            total = tl.sum(first * first, axis=0) + tl.sum(second * second, axis=0)
            if REST > 0:
                total += tl.sum(rest * rest, axis=0)
            scale = 1.0 / tl.sqrt(total / dim + eps)
            weight = q_weight if head < HEADS else k_weight
            first = first * scale * tl.load(weight + i, mask=inside, other=0.0).to(tl.float32)
            second = second * scale * tl.load(weight + HALF + i, mask=inside, other=0.0).to(tl.float32)
            if REST > 0:
                rest = rest * scale * tl.load(weight + 2 * HALF + j, mask=behind, other=0.0).to(tl.float32)
        c = tl.load(cos + row * 2 * HALF + i, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(sin + row * 2 * HALF + i, mask=inside, other=0.0).to(tl.float32)
        rotated = first * c - second * s
        second = second * c + first * s
        first = rotated
    if head < HEADS:
        target = query + (row * HEADS + head) * dim
        tl.store(target + i, first.to(query.dtype.element_ty), mask=inside)
        tl.store(target + HALF + i, second.to(query.dtype.element_ty), mask=inside)
        if REST > 0:
            tl.store(target + 2 * HALF + j, rest.to(query.dtype.element_ty), mask=behind)
    else:
        slot = tl.load(slots + row).to(tl.int64)
        if slot >= 0:
            target = kv + (slot * 2 * KV_HEADS + head - HEADS) * dim  # keys of all kv heads, then values
            tl.store(target + i, first.to(kv.dtype.element_ty), mask=inside)
            tl.store(target + HALF + i, second.to(kv.dtype.element_ty), mask=inside)
            if REST > 0:
                tl.store(target + 2 * HALF + j, rest.to(kv.dtype.element_ty), mask=behind)
