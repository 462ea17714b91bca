"""The device's tables: what they hold, what they cost, and that they may be written while they are read."""

import threading
from dataclasses import replace

import canonical_adapters as canonical
import pytest
import torch
from torch import Tensor

from hotshoe.kernels.low_rank import UNIT_RANK
from hotshoe.registry.formats.base import LinearId, NormId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear, TokenRows
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.rank_units import RankUnits


def new_slots(num_slots: int = 4) -> AdapterSlots:
    return AdapterSlots(num_slots, canonical.small_shape())


def delta_of(slots: AdapterSlots, slot: int, x: Tensor) -> Tensor:
    """What the adapter in a slot adds at layer 0's o_proj."""
    batch = slots.batch([AdapterSegment(0, 1, ((slot, 1.0),))], 1)
    y = torch.zeros(1, canonical.HIDDEN)
    if batch is not None:
        batch.add_delta(0, "o", x, y)
    return y


def wanted_delta(adapter: LoweredAdapter, x: Tensor) -> Tensor:
    linear = adapter.linears[LinearId(0, "o_proj")]
    assert linear.a is not None and linear.b is not None
    return x @ linear.a.T @ linear.b.T


def test_soft_prompts_are_kept_as_they_are() -> None:
    slots = new_slots()
    prefix, prompt = canonical.prefix(5), canonical.prompt(2)
    slots.place(1, prefix)
    slots.place(2, prompt)
    assert prefix.kv_prefix is not None
    kept = slots.sequence_terms(1)
    assert kept.prompt_embeddings is None and kept.kv_prefix is not None
    assert torch.equal(kept.kv_prefix.keys, prefix.kv_prefix.keys)
    assert torch.equal(kept.kv_prefix.values, prefix.kv_prefix.values)
    assert torch.equal(slots.sequence_terms(2).prompt_embeddings, prompt.prompt_embeddings)
    slots.place(0, canonical.lora())
    assert slots.sequence_terms(0).kv_prefix is None and slots.sequence_terms(0).prompt_embeddings is None


@pytest.mark.parametrize("rank", (1, 16, 17, 64))
def test_a_slot_takes_the_bytes_of_its_own_rank_rounded_to_units(rank: int) -> None:
    slots, adapter = new_slots(), canonical.lora(rank)
    units = -(-rank // UNIT_RANK)
    factors = sum(out + in_features for out, in_features in canonical.LINEAR_SHAPES.values())
    packed = slots.pack(adapter)
    assert packed.device_bytes == 4 * canonical.LAYERS * units * UNIT_RANK * factors
    slots.place(3, adapter)
    assert slots.slot_bytes(3) == packed.device_bytes
    slots.clear(3)
    assert slots.slot_bytes(3) == 0


@pytest.mark.parametrize("rank", (1, 4, 16, 17, 64))
def test_host_memory_follows_the_rank_and_not_a_maximum(rank: int) -> None:
    adapter = canonical.lora(rank)
    packed = new_slots().pack(adapter)
    factors = sum(out + in_features for out, in_features in canonical.LINEAR_SHAPES.values())
    assert packed.size_bytes == 4 * canonical.LAYERS * rank * factors == adapter.size_bytes
    assert packed.factors.untyped_storage().nbytes() == packed.size_bytes, "what is counted is what is held"


def test_what_is_kept_does_not_keep_the_rest_of_its_file_in_memory() -> None:
    """A file's tensors are read into one piece of memory, of which a norm or a prompt may be a small part."""
    norm, rows = NormId(0, "input_layernorm"), torch.randn(2, canonical.HIDDEN)
    file = torch.cat([torch.ones(canonical.HIDDEN), rows.flatten(), torch.zeros(1 << 20)])
    weight, replaced = file[: canonical.HIDDEN], file[canonical.HIDDEN :][: rows.numel()].view_as(rows)
    read = LoweredAdapter(
        "LORA",
        {},
        norms={norm: weight},
        prompt_embeddings=replaced,
        embedding_rows=TokenRows(torch.tensor([3, 5]), replaced, replaced.clone()),
    )
    packed = new_slots().pack(read)
    kept = [*packed.norms.values(), *packed.sequence_terms.tensors()]
    assert len(kept) == 4 and all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in kept)
    assert torch.equal(packed.norms[norm], weight)
    assert packed.sequence_terms.embedding_rows is not None
    assert torch.equal(packed.sequence_terms.embedding_rows.rows, rows)


def test_targets_without_a_rank_take_no_host_memory() -> None:
    slots = new_slots()
    some = slots.pack(canonical.lora(4, targets=("q_proj", "v_proj")))
    shapes = [canonical.LINEAR_SHAPES[target] for target in ("q_proj", "v_proj")]
    assert some.size_bytes == 4 * canonical.LAYERS * 4 * sum(map(sum, shapes))


def test_adapters_of_equal_ranks_share_one_layout() -> None:
    """One tensor each: thousands of adapters on the host are few objects for the garbage collector to visit."""
    slots = new_slots()
    one, two = slots.pack(canonical.lora(4, seed=1)), slots.pack(canonical.lora(4, seed=2))
    assert one.layout is two.layout is not slots.pack(canonical.lora(5)).layout


def test_an_adapter_is_copied_in_layer_order_with_a_pause_at_each_site() -> None:
    slots, pauses = new_slots(), []
    packed = slots.pack(canonical.lora(4))
    assert [layer for (layer, _), _, _ in packed.layout.sites] == sorted(layer for layer, _ in packed.layout.ranks)
    slots.place_packed(0, packed, pause=lambda: pauses.append(slots._placed[0]))
    assert pauses == [None] * len(packed.layout.sites), "nobody sees it before it is whole"
    assert slots.slot_bytes(0) == packed.device_bytes


def test_vectors_and_soft_prompts_count_too() -> None:
    slots = new_slots()
    for adapter in (canonical.prefix(7), canonical.prompt(3)):
        assert slots.pack(adapter).size_bytes == adapter.size_bytes
    qkv_outputs, down_inputs = canonical.HIDDEN + 2 * canonical.KV_WIDTH, canonical.INTERMEDIATE
    assert slots.pack(canonical.ia3()).size_bytes == 4 * canonical.LAYERS * (qkv_outputs + down_inputs)
    with_bias, without = canonical.lora(8, bias=True), canonical.lora(8)
    deltas = 4 * canonical.LAYERS * sum(out for out, _ in canonical.LINEAR_SHAPES.values())
    assert slots.pack(with_bias).size_bytes == slots.pack(without).size_bytes + deltas


def test_tables_grow_under_what_is_already_there() -> None:
    slots, x = new_slots(12), torch.randn(1, canonical.HIDDEN)
    adapters = [canonical.lora(rank, seed=rank) for rank in (4, 40, 8, 64, 16, 90, 33, 1, 20, 64, 5, 128)]
    for slot, adapter in enumerate(adapters):
        slots.place(slot, adapter)
        for earlier in range(slot + 1):
            want = wanted_delta(adapters[earlier], x)
            assert torch.allclose(delta_of(slots, earlier, x), want, rtol=1e-4, atol=1e-4)


def test_cleared_units_are_used_again() -> None:
    slots = new_slots(2)
    slots.place(0, canonical.lora(64, seed=1))
    end = slots._units.end
    for seed in range(2, 20):
        slots.clear(0)
        slots.place(0, canonical.lora(64, seed=seed))
    assert slots._units.end == end


def test_what_was_in_a_unit_before_is_gone_from_unused_ranks_too() -> None:
    slots = new_slots(num_slots=1)
    slots.place(0, canonical.poisoned(rank=16))
    slots.clear(0)
    slots.place(0, canonical.lora(5))
    for table in slots._tables.values():  # a GEMM may multiply ranks that nobody asked about by 0
        assert bool(table.a[0].isfinite().all()) and bool(table.b[:UNIT_RANK].isfinite().all())


def test_clearing_twice_does_nothing_and_a_filled_slot_is_not_overwritten() -> None:
    slots = new_slots()
    slots.place(0, canonical.lora(8, seed=1))
    with pytest.raises(AssertionError, match="slot 0 is not clear"):
        slots.place(0, canonical.lora(8, seed=2))
    slots.clear(0)
    slots.clear(0)
    assert slots._units.num_taken == 0


@pytest.mark.parametrize(
    ("linear_id", "changes", "named"),
    [
        (LinearId(0, "q_proj"), {"a": torch.zeros(8, 47)}, "layers.0.q_proj.a"),
        (LinearId(1, "k_proj"), {"b": torch.zeros(48, 8)}, "layers.1.k_proj.b"),
        (LinearId(0, "q_proj"), {"b": torch.zeros(48, 7)}, "layers.0.q_proj.b"),
        (LinearId(0, "q_proj"), {"b": None}, "both of a and b"),
        (LinearId(0, "o_proj"), {"input_scale": torch.ones(1)}, "layers.0.o_proj.input_scale"),
        (LinearId(0, "o_proj"), {"bias_delta": torch.ones(1, 48)}, "layers.0.o_proj.bias_delta"),
    ],
)
def test_tensors_that_do_not_fit_are_named(linear_id: LinearId, changes: dict[str, Tensor | None], named: str) -> None:
    adapter = canonical.lora(8)
    linears = {**adapter.linears, linear_id: replace(adapter.linears[linear_id], **changes)}
    slots = new_slots()
    for call in (slots.pack, lambda adapter: slots.place(0, adapter)):
        with pytest.raises(ValueError, match=named):
            call(LoweredAdapter("LORA", linears))
    assert slots._units.num_taken == 0 and slots.slot_bytes(0) == 0


@pytest.mark.parametrize("linear_id", (LinearId(2, "q_proj"), LinearId(0, "lm_head")))
def test_linears_that_the_base_lacks_are_named(linear_id: LinearId) -> None:
    adapter = LoweredAdapter("LORA", {linear_id: LoweredLinear(a=torch.zeros(1, 48), b=torch.zeros(48, 1))})
    with pytest.raises(ValueError, match=f"{linear_id}: the base has no such linear"):
        new_slots().place(0, adapter)


@pytest.mark.parametrize(
    ("backend", "dtype", "kind"),
    [
        ("reference", torch.float32, "reference"),
        ("cpu_nf4", torch.bfloat16, "gathered"),
        ("cpu_dense", torch.float32, "gathered"),
    ],
)
def test_slots_have_the_precision_of_their_backend(backend: str, dtype: torch.dtype, kind: str) -> None:
    slots = AdapterSlots.for_base(canonical.small_shape(), num_slots=2, backend=backend)
    assert (slots.dtype, slots._kind) == (dtype, kind)


def test_slots_are_read_while_others_are_written() -> None:
    """One thread decodes with slots 0 and 1 while two others fill and clear the rest, so that tables grow and move."""
    slots, x = new_slots(16), torch.randn(1, canonical.HIDDEN)
    steady = [canonical.lora(8, seed=1), canonical.lora(40, seed=2)]
    for slot, adapter in enumerate(steady):
        slots.place(slot, adapter)
    wanted = [delta_of(slots, slot, x) for slot in range(2)]
    errors: list[BaseException] = []

    def churn(first: int) -> None:
        try:
            for turn in range(8):
                for slot in range(first, first + 7):
                    slots.place(slot, canonical.lora(1 + 13 * (slot + turn) % 90, seed=slot))
                for slot in range(first, first + 7):
                    slots.clear(slot)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=churn, args=(first,)) for first in (2, 9)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for slot in (0, 1):
            assert torch.equal(delta_of(slots, slot, x), wanted[slot])
    for thread in threads:
        thread.join()
    assert not errors
    assert slots._units.num_taken == 1 + 3


def test_units_are_taken_from_the_lowest_run_that_fits() -> None:
    units = RankUnits()
    assert [units.take(count) for count in (2, 1, 3)] == [0, 2, 3]
    units.give_back(0, 2)
    assert units.take(3) == 6
    assert units.take(1) == 0
    units.give_back(6, 3)
    assert units.take(5) == 6 and units.end == 11
    with pytest.raises(AssertionError, match="not all taken"):
        units.give_back(1, 1)
