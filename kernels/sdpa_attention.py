"""Paged attention through torch's scaled_dot_product_attention, on any device.

Decoding rows are grouped by their own context length rounded up, so a row's arithmetic depends on nothing but its own
sequence: neighbours cannot change a bit of it. On several threads torch splits a call's keys by how many rows it has,
so there each row is a call of its own. The query heads of a group share their kv head by lying in the query
dimension; expanding the keys, or enable_gqa, costs several times as much on a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment

PADDED_FREELY = 1 << 16  # positions of a step


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Decoding rows whose contexts are padded to one length."""

    rows: Tensor | None  # [n] int64; None is every row of the step, in order
    slots: Tensor  # [n · length] int64
    length: int
    mask: Tensor  # [n, 1, 1, length]: 0 where visible, −inf elsewhere


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """One segment; without a mask it is a whole sequence, causal."""

    start: int
    end: int
    slots: Tensor  # [context] int64
    mask: Tensor | None  # [end − start, context]


@dataclass(frozen=True, slots=True)
class SdpaPlan:
    """Everything about a step's attention that its layers share."""

    num_rows: int
    decodes: tuple[DecodeGroup, ...]
    prefills: tuple[PrefillPlan, ...]


def padded_length(length: int) -> int:
    """The length that a context of `length` positions is padded to: at most an eighth more, in steps of 64 or above."""
    step = max(64, 1 << max(0, (length - 1).bit_length() - 4))
    return -(-length // step) * step


def plan_grouped(batch: AttentionBatch, *, window: int | None, device: torch.device, dtype: torch.dtype) -> SdpaPlan:
    """A plan whose groups depend on each row alone; reads the lengths on the host."""
    groups: dict[tuple[int, int], list[int]] = {}
    apart = torch.get_num_threads() > 1
    for row, length in enumerate(batch.decode_lengths.tolist()):
        groups.setdefault((padded_length(length), row if apart else 0), []).append(row)
    decodes = tuple(
        _decode_group(batch, rows, length, window=window, device=device, dtype=dtype)
        for (length, _), rows in sorted(groups.items())
    )
    return _plan(batch, decodes, window=window, device=device, dtype=dtype)


def plan_padded(batch: AttentionBatch, *, window: int | None, device: torch.device, dtype: torch.dtype) -> SdpaPlan:
    """A plan of one group, padded to the longest context: fewest launches.

    Where that would copy far more than there is, rows of half that length and less are groups of their own.
    """
    lengths = batch.decode_lengths.tolist()
    groups: dict[int, list[int]] = {}
    apart = len(lengths) * max(lengths, default=0) > max(PADDED_FREELY, 2 * sum(lengths))
    for row, length in enumerate(lengths):
        groups.setdefault((length - 1).bit_length() if apart else 0, []).append(row)
    decodes = tuple(
        _decode_group(batch, rows, max(lengths[row] for row in rows), window=window, device=device, dtype=dtype)
        for rows in groups.values()
    )
    return _plan(batch, decodes, window=window, device=device, dtype=dtype)


def paged_attention(query: Tensor, kv: Tensor, plan: SdpaPlan, *, scale: float, cap: float | None = None) -> Tensor:
    """As `reference.paged_attention`, with kv [num_slots, 2, kv_heads, head_dim] for keys and values."""
    if len(plan.decodes) == 1 and plan.decodes[0].rows is None:
        return _decode(query, kv, plan.decodes[0], scale, cap)
    out = torch.empty_like(query)
    for group in plan.decodes:
        out[group.rows] = _decode(query[group.rows], kv, group, scale, cap)
    for prefill in plan.prefills:
        out[prefill.start : prefill.end] = _prefill(query[prefill.start : prefill.end], kv, prefill, scale, cap)
    return out


def _plan(
    batch: AttentionBatch,
    decodes: tuple[DecodeGroup, ...],
    *,
    window: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> SdpaPlan:
    prefills = (
        PrefillPlan(s.start, s.end, s.slots.to(device), _prefill_mask(s, window, dtype, device)) for s in batch.prefills
    )
    return SdpaPlan(batch.num_rows, decodes, tuple(prefills))


def _decode_group(
    batch: AttentionBatch,
    rows: Sequence[int],
    length: int,
    *,
    window: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> DecodeGroup:
    everything = len(rows) == batch.num_rows
    index = torch.tensor(rows)
    slots = batch.decode_slots if everything else batch.decode_slots[index]
    lengths = batch.decode_lengths if everything else batch.decode_lengths[index]
    slots = slots[:, :length]
    if slots.shape[1] < length:
        slots = F.pad(slots, (0, length - slots.shape[1]))  # with slot 0, the null page
    position = torch.arange(length, device=lengths.device)
    hidden = position >= lengths[:, None]
    if window is not None:
        hidden |= position < lengths[:, None] - window
    mask = torch.zeros(hidden.shape, dtype=dtype, device=lengths.device).masked_fill_(hidden, float("-inf"))
    return DecodeGroup(
        rows=None if everything else index.to(device),
        slots=slots.reshape(-1).to(device),
        length=length,
        mask=mask[:, None, None].to(device),
    )


def _prefill_mask(
    segment: PrefillSegment, window: int | None, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    rows, context = segment.end - segment.start, segment.slots.shape[0]
    if rows == context and (window is None or context <= window):
        return None
    position = torch.arange(context, device=device)
    behind = position[context - rows :, None] - position
    hidden = (behind < 0) if window is None else (behind < 0) | (behind >= window)
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, float("-inf"))


def _decode(query: Tensor, kv: Tensor, group: DecodeGroup, scale: float, cap: float | None) -> Tensor:
    rows, heads, head_dim = query.shape
    kv_heads = kv.shape[2]
    context = (
        kv.index_select(0, group.slots)
        .to(query.dtype)
        .view(rows, group.length, 2, kv_heads, head_dim)
        .permute(2, 0, 3, 1, 4)
    )
    grouped = query.reshape(rows, kv_heads, heads // kv_heads, head_dim)
    if cap is None:
        out = F.scaled_dot_product_attention(grouped, context[0], context[1], attn_mask=group.mask, scale=scale)
    elif query.is_cuda:
        out = _capped(grouped, context[0], context[1], group.mask, scale, cap)
    else:  # each row by itself: a batch's product may go another way than one of its members alone
        parts = zip(grouped, context[0], context[1], group.mask, strict=True)
        out = torch.stack([_capped(*part, scale, cap) for part in parts])
    return out.reshape(rows, heads, head_dim)


def _prefill(query: Tensor, kv: Tensor, prefill: PrefillPlan, scale: float, cap: float | None) -> Tensor:
    rows, heads, head_dim = query.shape
    kv_heads = kv.shape[2]
    group = heads // kv_heads
    context = kv.index_select(0, prefill.slots).to(query.dtype).permute(1, 2, 0, 3)  # [2, kv_heads, context, head_dim]
    # kv heads as the batch, so that the query heads that share one see it through a stride of 0
    keys, values = (part[:, None].expand(-1, group, -1, -1) for part in context)
    grouped = query.reshape(rows, kv_heads, group, head_dim).permute(1, 2, 0, 3)
    if cap is None:
        out = F.scaled_dot_product_attention(
            grouped, keys, values, attn_mask=prefill.mask, is_causal=prefill.mask is None, scale=scale
        )
    else:
        mask = (prefill.mask if prefill.mask is not None else _causal(rows, query)).repeat(group, 1)
        out = _capped(grouped.flatten(1, 2), context[0], context[1], mask, scale, cap).unflatten(1, (group, rows))
    return out.permute(2, 0, 1, 3).reshape(rows, heads, head_dim)


def _causal(rows: int, like: Tensor) -> Tensor:
    """The mask of a whole sequence."""
    return torch.full((rows, rows), float("-inf"), dtype=like.dtype, device=like.device).triu_(1)


def _capped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, scale: float, cap: float) -> Tensor:
    """What scaled_dot_product_attention has no argument for: scores of cap · tanh(score / cap)."""
    scores = torch.matmul(query, keys.transpose(-1, -2)).float().mul_(scale / cap).tanh_().mul_(cap)
    return torch.matmul(scores.add_(mask).softmax(-1).to(values.dtype), values)
