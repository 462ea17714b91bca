"""The only door to the kernels: checks shapes and dtypes, then dispatches by how a weight or a plan was prepared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hotshoe.kernels import bnb_linear, reference, sdpa_attention
from hotshoe.kernels.attention_batch import AttentionBatch
from hotshoe.kernels.cpu import dense_linear as cpu_dense
from hotshoe.kernels.cpu import nf4_linear as cpu_nf4
from hotshoe.kernels.cpu import output_head as cpu_head
from hotshoe.kernels.sdpa_attention import SdpaPlan

AttentionKind = Literal["grouped", "padded", "reference"]


@dataclass(frozen=True, slots=True)
class ReferencePlan:
    """A step's attention, one sequence after the other."""

    batch: AttentionBatch
    window: int | None

    @property
    def num_rows(self) -> int:
        return self.batch.num_rows


AttentionPlan = SdpaPlan | ReferencePlan


def linear(x: Tensor, weight: Any) -> Tensor:
    """x Wᵀ: [rows, out_features], in x's dtype.

    Args:
        x: [rows, in_features], float32 or bfloat16.
        weight: [out_features, in_features], as a tensor or as `pack` of a kernel made it.
    Raises:
        TypeError: no kernel takes that form of weight.
        ValueError: shapes disagree.
    """
    kernel = _LINEAR_KERNELS.get(type(weight))
    if kernel is None:
        raise TypeError(f"weight: {type(weight).__name__} is not one of {sorted(t.__name__ for t in _LINEAR_KERNELS)}")
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise ValueError(f"x: expected [rows, {weight.shape[1]}], not {list(x.shape)}")
    return kernel(x, weight)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight ∘ x / √(mean(x²) + eps) over the last dimension; weight's shape ends x's.

    A weight of another dtype than x's is float32: the product is rounded once.
    """
    if x.shape[x.ndim - weight.ndim :] != weight.shape:
        raise ValueError(f"weight: {list(weight.shape)} does not end x's shape, {list(x.shape)}")
    if weight.dtype != x.dtype:
        return rms_norm(x.float(), weight.float(), eps).to(x.dtype)
    if weight.ndim == 1:
        return F.rms_norm(x, weight.shape, weight, eps)
    return F.rms_norm(x, weight.shape[-1:], None, eps).mul_(weight)


def rope_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [rows, heads, head_dim] in place by cos, sin [rows, 1, head_dim]; sin's first half is negated."""
    if cos.shape != (x.shape[0], 1, x.shape[2]) or sin.shape != cos.shape:
        raise ValueError(
            f"cos, sin: expected [{x.shape[0]}, 1, {x.shape[2]}], not {list(cos.shape)}, {list(sin.shape)}"
        )
    swapped = x.roll(x.shape[-1] // 2, -1)
    return x.mul_(cos).addcmul_(swapped, sin)


def silu_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) ∘ up of gate_up [rows, 2 · features]: [rows, features]."""
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: expected [rows, 2 · features], not {list(gate_up.shape)}")
    features = gate_up.shape[1] // 2
    return F.silu(gate_up[:, :features]).mul_(gate_up[:, features:])


def gelu_tanh_mul(gate_up: Tensor) -> Tensor:
    """As `silu_mul`, with the tanh form of gelu."""
    if gate_up.ndim != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up: expected [rows, 2 · features], not {list(gate_up.shape)}")
    features = gate_up.shape[1] // 2
    return F.gelu(gate_up[:, :features], approximate="tanh").mul_(gate_up[:, features:])


GATES: Mapping[str, Callable[[Tensor], Tensor]] = {"silu": silu_mul, "gelu_tanh": gelu_tanh_mul}


def soft_cap(x: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(x / cap), in place; x as it is if there is no cap."""
    return x if cap is None else x.div_(cap).tanh_().mul_(cap)


def plan_attention(
    batch: AttentionBatch, kind: AttentionKind, *, window: int | None, device: torch.device, dtype: torch.dtype
) -> AttentionPlan:
    """What every layer with that window shares in one step."""
    if batch.decode_slots.shape[0] != batch.num_decodes or batch.decode_lengths.shape != (batch.num_decodes,):
        raise ValueError(
            f"decode_slots, decode_lengths: expected {batch.num_decodes} rows, not "
            f"{list(batch.decode_slots.shape)}, {list(batch.decode_lengths.shape)}"
        )
    row = batch.num_decodes
    for segment in batch.prefills:
        if segment.start != row or not segment.start < segment.end <= segment.start + segment.slots.shape[0]:
            rows = f"rows {segment.start}…{segment.end} with {segment.slots.shape[0]} slots"
            raise ValueError(f"prefills: {rows} do not follow row {row}")
        row = segment.end
    if kind == "reference":
        return ReferencePlan(batch, window)
    plan = sdpa_attention.plan_grouped if kind == "grouped" else sdpa_attention.plan_padded
    return plan(batch, window=window, device=device, dtype=dtype)


def paged_attention(
    query: Tensor, kv: Tensor, plan: AttentionPlan, *, scale: float, cap: float | None = None
) -> Tensor:
    """Attention of each row of query [rows, heads, head_dim] over its sequence's part of the cache.

    Args:
        kv: [num_slots, 2, kv_heads, head_dim]: keys and values, in query's dtype or in float16.
        cap: scores become cap · tanh(score / cap).
    Returns:
        [rows, heads, head_dim].
    """
    if query.shape[0] != plan.num_rows:
        raise ValueError(f"query: expected {plan.num_rows} rows, not {query.shape[0]}")
    if kv.ndim != 4 or kv.shape[1] != 2 or kv.shape[3] != query.shape[2] or query.shape[1] % kv.shape[2]:
        raise ValueError(f"kv: {list(kv.shape)} does not fit query {list(query.shape)}")
    if kv.dtype not in (query.dtype, torch.float16):
        raise ValueError(f"kv: expected {query.dtype} or torch.float16, not {kv.dtype}")
    if isinstance(plan, ReferencePlan):
        keys, values = kv.unbind(1)
        return reference.paged_attention(query, keys, values, plan.batch, scale=scale, window=plan.window, cap=cap)
    return sdpa_attention.paged_attention(query, kv, plan, scale=scale, cap=cap)


_LINEAR_KERNELS: dict[type, Callable[[Tensor, Any], Tensor]] = {
    Tensor: cpu_dense.plain_linear,
    cpu_dense.PackedDense: cpu_dense.linear,
    cpu_nf4.PackedNf4: cpu_nf4.linear,
    cpu_head.PackedHead: cpu_head.linear,
    bnb_linear.BnbNf4: bnb_linear.linear,
}
