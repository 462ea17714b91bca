"""Paged attention against the definition in float64; rows that see nothing but their own sequence."""

import pytest
import torch
from torch import Tensor

from hotshoe.kernels import ops, reference, sdpa_attention
from hotshoe.kernels.attention_batch import AttentionBatch, PrefillSegment
from hotshoe.kernels.ops import AttentionKind
from hotshoe.kernels.sdpa_attention import padded_length

KV_HEADS, HEAD_DIM, SLOTS = 2, 16, 4096
SCALE = HEAD_DIM**-0.5


def random_batch(decodes: list[int], prefills: list[tuple[int, int]], *, seed: int = 0) -> AttentionBatch:
    """Sequences in scattered slots of their own: context lengths of decodes; (rows, context) of prefills."""
    free = torch.randperm(SLOTS - 16, generator=torch.Generator().manual_seed(seed)) + 16
    taken = 0
    decode_slots = torch.zeros((len(decodes), max(decodes, default=0)), dtype=torch.int64)
    for row, length in enumerate(decodes):
        decode_slots[row, :length] = free[taken : taken + length]
        taken += length
    segments, row = [], len(decodes)
    for rows, context in prefills:
        segments.append(PrefillSegment(row, row + rows, free[taken : taken + context]))
        taken, row = taken + context, row + rows
    return AttentionBatch(len(decodes), decode_slots, torch.tensor(decodes, dtype=torch.int64), tuple(segments))


def random_kv(seed: int = 0) -> Tensor:
    kv = torch.randn(SLOTS, 2, KV_HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(seed))
    kv[:16] = 0
    return kv


def attend(
    query: Tensor,
    kv: Tensor,
    batch: AttentionBatch,
    kind: AttentionKind = "grouped",
    window: int | None = None,
    cap: float | None = None,
) -> Tensor:
    plan = ops.plan_attention(batch, kind, window=window, device=query.device, dtype=query.dtype)
    return ops.paged_attention(query, kv, plan, scale=SCALE, cap=cap)


BATCHES = {
    "one": ([1], []),
    "decodes": ([1, 63, 64, 65, 200, 700], []),
    "whole_prefill": ([], [(37, 37)]),
    "chunk": ([], [(10, 100)]),
    "one_row_prefill": ([], [(1, 20)]),
    "mixed": ([5, 130], [(8, 8), (3, 150), (60, 61)]),
}


@pytest.mark.parametrize("window", [None, 1, 9, 1000])
@pytest.mark.parametrize("kind", ["grouped", "padded", "reference"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("case", BATCHES)
def test_attention_equals_the_reference(case: str, group: int, kind: AttentionKind, window: int | None) -> None:
    batch, kv = random_batch(*BATCHES[case]), random_kv()
    query = torch.randn(batch.num_rows, KV_HEADS * group, HEAD_DIM)
    keys, values = kv[:, 0].double(), kv[:, 1].double()
    expected = reference.paged_attention(query.double(), keys, values, batch, scale=SCALE, window=window)
    actual = attend(query, kv, batch, kind, window)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("kind", ["grouped", "padded", "reference"])
@pytest.mark.parametrize("case", BATCHES)
def test_scores_are_held_below_a_cap(case: str, kind: AttentionKind, window: int | None) -> None:
    batch, kv = random_batch(*BATCHES[case]), random_kv()
    query = 3 * torch.randn(batch.num_rows, KV_HEADS * 3, HEAD_DIM)
    keys, values, definition = kv[:, 0].double(), kv[:, 1].double(), reference.paged_attention
    expected, uncapped = (
        definition(query.double(), keys, values, batch, scale=SCALE, window=window, cap=cap) for cap in (1.5, None)
    )
    torch.testing.assert_close(attend(query, kv, batch, kind, window, 1.5).double(), expected, rtol=1e-4, atol=1e-5)
    assert batch.num_rows == 1 or (expected - uncapped).abs().max() > 0.1


def test_the_reference_equals_dense_causal_attention() -> None:
    kv, rows = random_kv(), 12
    batch = random_batch([], [(rows, rows)])
    query = torch.randn(rows, KV_HEADS * 2, HEAD_DIM)
    slots = batch.prefills[0].slots
    keys, values = (kv[slots, part].transpose(0, 1).repeat_interleave(2, dim=0) for part in (0, 1))
    expected = torch.nn.functional.scaled_dot_product_attention(query.transpose(0, 1), keys, values, is_causal=True)
    torch.testing.assert_close(attend(query, kv, batch, "reference"), expected.transpose(0, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_a_row_is_bit_identical_whatever_its_neighbours(cap: float | None) -> None:
    kv = random_kv()
    ours = random_batch([70, 40], [(5, 33)], seed=1)
    query = torch.randn(ours.num_rows, KV_HEADS * 3, HEAD_DIM)
    expected = attend(query, kv, ours, cap=cap)
    for other_length in (1, 64, 90, 1500):
        theirs = random_batch([70, other_length], [(5, 33)], seed=1)
        theirs.decode_slots[0, :70] = ours.decode_slots[0, :70]
        moved = (theirs.prefills[0].start, theirs.prefills[0].end, ours.prefills[0].slots)
        batch = AttentionBatch(2, theirs.decode_slots, theirs.decode_lengths, (PrefillSegment(*moved),))
        neighbours = torch.randn_like(query)
        neighbours[0], neighbours[2:] = query[0], query[2:]
        actual = attend(neighbours, kv, batch, cap=cap)
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[2:], expected[2:])


@pytest.mark.parametrize("kind", ["grouped", "padded", "reference"])
def test_a_neighbour_full_of_nan_harms_only_itself(kind: AttentionKind) -> None:
    kv, batch = random_kv(), random_batch([20, 60, 300], [(5, 33)])
    query = torch.randn(batch.num_rows, KV_HEADS * 3, HEAD_DIM)
    expected = attend(query, kv, batch, kind)
    kv[batch.decode_slots[1, :60]] = float("nan")
    query[1] = float("nan")
    actual = attend(query, kv, batch, kind)
    assert bool(actual[1].isnan().all())
    others = [0, *range(2, batch.num_rows)]
    assert torch.equal(actual[others], expected[others])


def test_a_length_is_padded_by_at_most_an_eighth_or_to_the_next_64() -> None:
    for length in range(1, 5000):
        padded = padded_length(length)
        assert length <= padded <= max(-(-length // 64) * 64, length * 9 // 8 + 1)
        assert padded_length(padded) == padded


def test_one_long_context_among_short_ones_does_not_make_all_of_them_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa_attention, "PADDED_FREELY", 1000)
    kv, batch = random_kv(), random_batch([1, 1200, 3, 65, 128, 700, 2, 1, 40], [(5, 33)])
    query = torch.randn(batch.num_rows, KV_HEADS * 3, HEAD_DIM)
    plan = sdpa_attention.plan_padded(batch, window=None, device=query.device, dtype=query.dtype)
    assert sum(group.slots.shape[0] for group in plan.decodes) <= 2 * int(batch.decode_lengths.sum())
    expected = attend(query, kv, batch, "reference")
    torch.testing.assert_close(attend(query, kv, batch, "padded"), expected, rtol=1e-4, atol=1e-5)
    few = random_batch([700, 500, 600], [])
    [group] = sdpa_attention.plan_padded(few, window=None, device=query.device, dtype=query.dtype).decodes
    assert group.length == 700


def test_plans_that_do_not_cover_the_rows_are_refused() -> None:
    kv, batch = random_kv(), random_batch([3, 4], [(2, 5)])
    with pytest.raises(ValueError, match="expected 4 rows"):
        attend(torch.randn(5, KV_HEADS, HEAD_DIM), kv, batch)
    gap = AttentionBatch(2, batch.decode_slots, batch.decode_lengths, (PrefillSegment(3, 5, torch.arange(5)),))
    with pytest.raises(ValueError, match="do not follow row 2"):
        attend(torch.randn(5, KV_HEADS, HEAD_DIM), kv, gap)
    with pytest.raises(ValueError, match="expected torch.float32"):
        attend(torch.randn(4, KV_HEADS, HEAD_DIM), kv.bfloat16(), batch)
