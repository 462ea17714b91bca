"""Paged attention in Triton: decoding over split contexts, and prompts behind what is cached."""

import pytest
import torch
from torch import Tensor

from hotshoe.kernels import reference
from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment
from hotshoe.kernels.triton import paged_attention as module
from hotshoe.kernels.triton.paged_attention import paged_attention

SLOTS, KV_HEADS = 1200, 2
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def batch_of(device: torch.device, decodes: list[int], prefills: list[tuple[int, int]]) -> AttentionBatch:
    """decodes: context lengths; prefills: (new rows, context). No two sequences share a slot; slot 0 is the null."""
    free = (torch.randperm(SLOTS - 1, generator=torch.Generator().manual_seed(4)) + 1).tolist()

    def take(count: int) -> Tensor:
        taken = torch.tensor(free[:count])
        del free[:count]
        return taken

    table = torch.zeros(len(decodes), max(decodes, default=0), dtype=torch.int64)
    for row, length in enumerate(decodes):
        table[row, :length] = take(length)
    segments, start = [], len(decodes)
    for rows, context in prefills:
        segments.append(PrefillSegment(start, start + rows, take(context).to(device)))
        start += rows
    lengths = torch.tensor(decodes, dtype=torch.int64, device=device)
    return AttentionBatch(len(decodes), table.to(device), lengths, tuple(segments))


def tensors(
    batch: AttentionBatch,
    device: torch.device,
    *,
    heads: int = 6,
    head_dim: int = 16,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(batch.num_rows, heads, head_dim, generator=generator)
    kv = torch.randn(SLOTS, 2, KV_HEADS, head_dim, generator=generator)
    return query.to(device, dtype), kv.to(device, dtype)


BATCHES = {
    "decode": ([1, 64, 65, 200, 600], []),
    "prompt": ([], [(19, 19)]),
    "chunk": ([], [(7, 150), (33, 40)]),
    "mixed": ([3, 90], [(20, 20), (1, 70)]),
}


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize("kind", BATCHES)
def test_it_equals_the_reference(kind: str, window: int | None, device: torch.device) -> None:
    batch = batch_of(device, *BATCHES[kind])
    query, kv = tensors(batch, device)
    out = paged_attention(query, kv, batch, scale=0.3, window=window)
    keys, values = kv.double().unbind(1)
    expected = reference.paged_attention(query.double(), keys, values, batch, scale=0.3, window=window)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_scores_are_held_below_a_cap(dtype: torch.dtype, device: torch.device) -> None:
    batch = batch_of(device, [90, 5], [(20, 31)])
    query, kv = tensors(batch, device, head_dim=64, dtype=dtype)
    out = paged_attention(query, kv, batch, scale=0.5, window=24, cap=2.0)
    keys, values = kv.double().unbind(1)
    expected, uncapped = (
        reference.paged_attention(query.double(), keys, values, batch, scale=0.5, window=24, cap=cap)
        for cap in (2.0, None)
    )
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert (expected - uncapped).abs().max() > 0.5


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("heads", "head_dim"), [(2, 64), (6, 40), (8, 16)])
def test_it_takes_any_heads(heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
    batch = batch_of(device, [70, 5], [(9, 30)])
    query, kv = tensors(batch, device, heads=heads, head_dim=head_dim, dtype=dtype)
    out = paged_attention(query, kv, batch, scale=0.2)
    keys, values = kv.double().unbind(1)
    expected = reference.paged_attention(query.double(), keys, values, batch, scale=0.2, window=None)
    torch.testing.assert_close(out.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_a_group_of_heads_may_be_divided_between_programs(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(device, [70], [(19, 30)])
    query, kv = tensors(batch, device)
    whole = paged_attention(query, kv, batch, scale=0.3)
    monkeypatch.setattr(module, "TILE_VALUES", 16 * 16 * 2)  # of the three heads that share keys, two and one
    assert module._shape(query, kv, rows=16)[0] == 2 * KV_HEADS
    torch.testing.assert_close(paged_attention(query, kv, batch, scale=0.3), whole, rtol=1e-5, atol=1e-5)


def test_slots_of_others_and_recycled_ones_do_not_leak(device: torch.device) -> None:
    batch = batch_of(device, [1, 90], [(19, 30)])
    query, kv = tensors(batch, device)
    clean = paged_attention(query, kv, batch, scale=0.3)
    used = torch.zeros(SLOTS, dtype=torch.bool, device=device)
    used[batch.decode_slots.flatten()] = used[batch.prefills[0].slots] = True
    used[0] = False  # what padding points at
    kv[~used] = float("nan")
    assert torch.equal(paged_attention(query, kv, batch, scale=0.3), clean)


def test_a_row_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    batch = batch_of(device, [40, 90, 500], [(5, 9)])
    query, kv = tensors(batch, device)
    among = paged_attention(query, kv, batch, scale=0.3)
    alone = AttentionBatch(1, batch.decode_slots[1:2, :90], batch.decode_lengths[1:2])
    assert torch.equal(paged_attention(query[1:2], kv, alone, scale=0.3)[0], among[1])


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    batch = batch_of(device, [3], [])
    query, kv = tensors(batch, device)
    with pytest.raises(ValueError, match="query: expected 1 contiguous rows"):
        paged_attention(query.expand(2, -1, -1), kv, batch, scale=0.3)
    with pytest.raises(ValueError, match="kv: expected torch.float32"):
        paged_attention(query, kv.half(), batch, scale=0.3)
    with pytest.raises(ValueError, match="does not fit query"):
        paged_attention(query[:, :5].contiguous(), kv, batch, scale=0.3)
