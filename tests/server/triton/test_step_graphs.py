"""Recorded decode steps: the bits of the same step computed at once, whatever is recorded, swapped, or beside it."""

from collections.abc import Sequence

import pytest
import torch
from decoder_inputs import PAGE
from torch import Tensor
from triton_base import (
    CONTEXTS,
    LOW_RANK,
    Part,
    TritonBase,
    decodes,
    filled_cache,
    recorded,
    run_step,
    step_of,
    triton_base,
)

from hotshoe.server.adapters.adapter_places import AdapterPlaces
from hotshoe.server.model.kv_cache import KvCache


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> TritonBase:
    return triton_base(tmp_path_factory.mktemp("base"), "qwen3", device)


def at_once(base: TritonBase, slots: AdapterPlaces, parts: Sequence[Part]) -> tuple[Tensor, KvCache]:
    """The step without any recording, on a cache of its own."""
    kv = filled_cache(base)
    return run_step(base.decoder, slots, kv, parts), kv


BASE_ONLY = [()] * 4
MIXED = [((0, 1.0),), ((1, 0.5), (2, -1.0)), (), ((3, 1.0),)]  # the last scales inputs


@pytest.mark.parametrize(("rows", "stacks"), [(3, BASE_ONLY), (4, LOW_RANK), (3, MIXED)])
def test_a_played_step_has_the_bits_of_one_computed_at_once(rows: int, stacks: list, base: TritonBase) -> None:
    slots, kv = base.slots("triton"), filled_cache(base)
    graphs = recorded(base, kv, slots)
    parts = decodes(stacks[:rows])
    expected, cache = at_once(base, slots, parts)
    for _ in range(2):  # recorded, then played
        logits = run_step(base.decoder, slots, kv, parts)
        if rows == 4:  # the head's GEMM, a library's, may differ with the number of rows
            assert torch.equal(logits, expected)
        near = 1e-5 if base.device.type == "cpu" else 1e-2
        torch.testing.assert_close(logits, expected, rtol=near, atol=near)
        assert all(torch.equal(*pair) for pair in zip(kv.layers, cache.layers, strict=True))
    assert graphs.num_recorded >= 1
    assert all(bool((layer[:PAGE] == 0).all()) for layer in kv.layers)  # the null page


def test_a_recorded_step_serves_more_adapters_than_when_it_was_recorded(base: TritonBase) -> None:
    slots, kv = base.slots("triton"), filled_cache(base)
    graphs = recorded(base, kv, slots)
    run_step(base.decoder, slots, kv, decodes([((0, 1.0),), (), (), ()]))
    count = graphs.num_recorded
    parts = decodes([((0, 1.0), (1, 0.5)), ((1, 1.0),), ((2, 1.0),), ((0, -1.0), (2, 0.25))])
    assert torch.equal(run_step(base.decoder, slots, kv, parts), at_once(base, slots, parts)[0])
    assert graphs.num_recorded == count


def test_an_adapter_is_swapped_without_recording_again(base: TritonBase) -> None:
    slots, kv = base.slots("triton", num_slots=2, place=(0, 1)), filled_cache(base)
    graphs = recorded(base, kv, slots)
    parts = decodes([((0, 1.0),), ((1, 1.0),), (), ()])
    before, count = run_step(base.decoder, slots, kv, parts), graphs.num_recorded
    slots.clear(0)
    slots.place(0, base.adapters[2])
    after = run_step(base.decoder, slots, kv, parts)
    assert graphs.num_recorded == count
    assert torch.equal(after, at_once(base, slots, parts)[0])
    assert not torch.equal(after[0], before[0])
    assert torch.equal(after[1:], before[1:])


def test_a_row_keeps_every_bit_whatever_is_beside_it(base: TritonBase) -> None:
    slots, kv = base.slots("triton"), filled_cache(base)
    recorded(base, kv, slots)
    first = run_step(base.decoder, slots, kv, decodes(LOW_RANK))
    for update in slots.tables._sites.values():
        for unit in slots._placed[2].adapter.units:
            update.table.a[unit] = float("nan")
    others = decodes([((0, 1.0),), ((2, 1.0),), ((1, 1.0), (2, 1.0)), ()], (1, 12, 30, 8))
    second = run_step(base.decoder, slots, kv, others)
    assert torch.equal(second[0], first[0])
    assert second[1].isnan().all() and second[2].isnan().all()
    assert second[3].isfinite().all()


def test_numbers_in_pages_of_others_do_not_leak(base: TritonBase) -> None:
    slots, kv = base.slots("triton"), filled_cache(base)
    recorded(base, kv, slots)
    parts = decodes(MIXED[:3])
    clean = run_step(base.decoder, slots, kv, parts)
    kept = torch.zeros(kv.num_slots, dtype=torch.bool)
    kept[:PAGE] = True
    for part, context in zip(parts, CONTEXTS, strict=False):
        position = torch.arange(context)
        kept[torch.tensor(part.pages)[position // PAGE] * PAGE + position % PAGE] = True
    for layer in kv.layers:
        layer[~kept.to(layer.device)] = float("nan")
    assert torch.equal(run_step(base.decoder, slots, kv, parts), clean)


def test_what_is_not_recorded_is_computed_at_once(base: TritonBase) -> None:
    slots, kv = base.slots("triton"), filled_cache(base)
    graphs = recorded(base, kv, slots, max_rows=2)

    def taken(parts: Sequence[Part]) -> bool:
        inputs, segments = step_of(parts, paged=True)
        return graphs.take(inputs, slots.batch(segments, inputs.token_ids.shape[0]))

    assert taken(decodes(BASE_ONLY[:2]))
    assert not taken(decodes(BASE_ONLY[:3]))  # more rows than the largest bucket
    assert not taken([*decodes(BASE_ONLY[:1]), Part([1, 2], 0, [9])])  # a prompt
    assert not taken([Part([5], 150, list(range(1, 11)))])  # more pages
    deep = tuple((slot, 0.1) for slot in range(5))
    assert not taken(decodes([deep, deep[:4]]))  # more entries
    assert taken(decodes([deep]))


def test_warming_up_writes_nothing(base: TritonBase) -> None:
    slots, kv = base.slots("triton"), filled_cache(base)
    before = [layer.clone() for layer in kv.layers]
    base.decoder.warm_up(kv, slots, rows=18, page_tokens=PAGE)
    assert all(torch.equal(*pair) for pair in zip(kv.layers, before, strict=True))
