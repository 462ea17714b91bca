"""Tables that never move: what lies where, what it counts for, and that nothing of a slot's last adapter is left."""

import weakref

import pytest
import torch
from canonical_adapters import TARGETS, ia3, lora, prefix, site_output, small_shape

from hotshoe.kernels.site_updates import HAS_BIAS, HAS_INPUT, HAS_OUTPUT
from hotshoe.registry.formats.base import LinearId, NormId
from hotshoe.registry.formats.lowered import (
    GatedPrompt,
    LoweredAdapter,
    LoweredLinear,
    OutputSwap,
    ScaledCopies,
    TokenFactors,
    TokenRows,
)
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots, InputScales
from hotshoe.server.adapters.packed_adapter import PackedAdapter
from hotshoe.server.adapters.placed_adapter import SequenceTerms
from hotshoe.server.adapters.sites import SITE_INDEX, SITES
from hotshoe.server.adapters.slot_tables import unit_bytes


def slots_of(*, num_units: int = 6, num_slots: int = 4) -> FixedAdapterSlots:
    shape = small_shape()
    one = FixedAdapterSlots(1, shape, device="cpu", dtype=torch.float32, device_bytes=1 << 30, max_rank=16)
    size = unit_bytes(one._shapes, torch.float32)
    return FixedAdapterSlots(
        num_slots, shape, device="cpu", dtype=torch.float32, device_bytes=num_units * size, max_rank=64
    )


def test_factors_lie_in_the_units_that_are_free_and_tables_stay_where_they_are() -> None:
    slots = slots_of()
    addresses = [slots.tables.site(layer, "qkv").table.a.data_ptr() for layer in range(2)]
    for slot, rank in enumerate((16, 30, 8)):
        slots.place(slot, lora(rank, seed=slot))
    slots.clear(0)
    slots.clear(2)
    adapter = lora(40, seed=9)
    slots.place(2, adapter)
    assert slots._placed[2].adapter.units == (0, 3, 4)  # around those of slot 1
    site, linear = slots.tables.site(1, "qkv"), adapter.linears[LinearId(1, "v_proj")]
    a = torch.cat([site.table.a_of(unit, 2, 16) for unit in (0, 3, 4)], dim=1)[:, :40]
    b = torch.cat([site.table.b_of(unit, 2, 16) for unit in (0, 3, 4)])[:40]
    assert torch.equal(a, linear.a.T) and torch.equal(b, linear.b.T)
    assert site.ranks[2].tolist() == [40, 40, 40]
    assert [slots.tables.site(layer, "qkv").table.a.data_ptr() for layer in range(2)] == addresses


def test_whole_units_count_for_the_devices_bytes_so_that_what_fits_is_placed() -> None:
    slots = slots_of(num_units=3)
    packed = slots.pack(lora(17, targets=("q_proj",)))
    assert packed.device_bytes == 2 * slots._unit_bytes > packed.size_bytes
    slots.place_packed(0, packed)
    assert slots.slot_bytes(0) == packed.device_bytes
    with pytest.raises(AssertionError, match="2 units are wanted, 2 of 3 are taken"):
        slots.place_packed(1, packed)
    slots.place(1, lora(16))
    assert slots.pack(prefix(3)).device_bytes == slots.pack(prefix(3)).size_bytes


def test_an_adapter_for_which_the_devices_memory_is_full_leaves_its_units_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slots = slots_of(num_units=2)
    packed = slots.pack(lora(32))

    def full(self: PackedAdapter, *args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(PackedAdapter, "placed", full)
        slots.place_packed(0, packed)
    assert slots.slot_bytes(0) == 0
    slots.place_packed(0, packed)


def test_what_is_of_the_embedding_stays_where_steps_are_built() -> None:
    rows = TokenRows(torch.tensor([3]), torch.zeros(1, 8), torch.zeros(1, 8))
    terms = SequenceTerms(prompt_embeddings=torch.zeros(2, 8), embedding_rows=rows, head_rows=rows)
    placed = terms.to(torch.device("meta"))
    assert placed.prompt_embeddings is not None and placed.embedding_rows is not None
    assert placed.prompt_embeddings.device == placed.embedding_rows.rows.device == torch.device("cpu")
    assert placed.head_rows is not None and placed.head_rows.rows.is_meta


def test_a_slot_shows_nothing_of_what_it_held_before() -> None:
    slots = slots_of()
    slots.place(0, lora(16, bias=True))
    slots.clear(0)
    slots.place(0, ia3(outputs=("k_proj",), inputs=("down_proj",)))
    flags = slots.tables._flags[0]
    assert slots.tables._ranks[0].sum() == 0
    assert flags[:, SITE_INDEX["qkv"]].tolist() == [HAS_OUTPUT] * 2
    assert flags[:, SITE_INDEX["down"]].tolist() == [HAS_INPUT] * 2
    assert flags[:, SITE_INDEX["o"]].tolist() == [0, 0]
    slots.clear(0)
    slots.place(0, lora(8, targets=TARGETS[:1], bias=True))
    assert flags.tolist() == [[HAS_BIAS, 0, 0, 0]] * 2


def test_a_step_names_slots_and_how_their_inputs_scale() -> None:
    slots = slots_of()
    slots.place(0, lora(16))
    slots.place(1, ia3())
    slots.place(2, ia3(outputs=(), inputs=("k_proj",)))
    slots.place(3, prefix(3))
    segments = [AdapterSegment(0, 1, ((0, 1.0), (3, 1.0))), AdapterSegment(1, 2, ((0, 1.0),)), AdapterSegment(2, 20)]
    batch = slots.batch(segments, 20)
    assert batch.tiles.entries.tolist() == [[0, 2, 0]]  # rows of one stack share a tile; a prefix adds nothing here
    assert batch.tiles.row_entries.tolist() == [[0, 1]] * 2 + [[1, 1]] * 18
    assert batch.scales is InputScales.NONE
    assert slots.batch(segments, 20) is batch
    assert slots.batch([AdapterSegment(0, 1, ((1, 1.0),))], 1).scales is InputScales.SHARED
    assert slots.batch([AdapterSegment(0, 1, ((1, 1.0), (2, 0.5)))], 1).scales is InputScales.APART
    assert slots.batch([AdapterSegment(0, 1, ((3, 1.0),))], 1) is None


def turned(seed: int = 0) -> LoweredAdapter:
    """Rotations of an input, a swap of outputs, copies of a product, a norm, and what a head has of its own."""
    generator = torch.Generator().manual_seed(seed)
    linears = {
        LinearId(0, "v_proj"): LoweredLinear(input_rotation=torch.randn(6, 8, 8, generator=generator)),
        LinearId(1, "o_proj"): LoweredLinear(
            output_swap=OutputSwap(torch.arange(48).flip(0), torch.ones(48)),
            copies=ScaledCopies(torch.randn(2, 48, generator=generator), torch.randn(2, 48, generator=generator)),
        ),
    }
    rows = torch.randn(2, 2, 48, generator=generator)
    return LoweredAdapter(
        "OFT",
        linears,
        norms={NormId(None, "norm"): torch.randn(48, generator=generator)},
        gated_prompts={1: GatedPrompt(torch.randn(3, 2, 8), torch.randn(3, 2, 8), torch.ones(1))},
        head_rows=TokenRows(torch.tensor([3, 9]), *rows),
        head_update=TokenFactors(torch.randn(20, 3, generator=generator), torch.randn(3, 48, generator=generator)),
    )


def test_what_lies_in_no_table_counts_for_the_devices_bytes_and_goes_with_its_adapter() -> None:
    slots = slots_of()
    packed = slots.pack(turned())
    rotations, swap, norm, prompt, rows = 6 * 64, 48 * 3, 48, 2 * 3 * 16, 2 * 2 * 48
    copies, update = 2 * 2 * 48, 3 * (20 + 48)
    assert packed.device_bytes == packed.size_bytes == 4 * (rotations + swap + norm + prompt + rows + copies + update)
    slots.place_packed(0, packed)
    assert slots.slot_bytes(0) == packed.device_bytes
    assert slots.batch_apart([AdapterSegment(0, 2, ((0, 1.0),))], 2) is not None
    kept = [weakref.ref(tensor) for tensor in (packed.rotations[0, "qkv"].inputs[2], *packed.norms.values())]
    del packed
    assert all(tensor() is not None for tensor in kept)
    slots.clear(0)
    assert not any(tensor() is not None for tensor in kept)


def test_rows_apart_find_factors_in_scattered_units_and_vectors_in_their_slots_lines() -> None:
    slots = slots_of(num_units=8)
    slots.place(0, lora(16))
    slots.place(1, lora(16))
    slots.clear(0)
    adapter = lora({target: 40 if target in ("q_proj", "up_proj") else 3 for target in TARGETS}, seed=3, bias=True)
    scaled = ia3(outputs=("k_proj",), inputs=("k_proj", "q_proj", "down_proj"), seed=4)
    slots.place(0, adapter)
    slots.place(2, scaled)
    slots.place(3, turned())
    assert slots._placed[0].adapter.units == (0, 2, 3)
    stack = ((0, 0.5), (2, 1.0), (1, 0.0))
    segments = [AdapterSegment(0, 2), AdapterSegment(2, 3, stack), AdapterSegment(3, 7, stack)]
    batch = slots.batch_apart(segments, 7)
    assert slots.batch_apart(segments, 7) is batch
    generator = torch.Generator().manual_seed(1)
    for site in ("qkv", "gate_up", "down"):
        shape, targets = slots._shapes[1, site], SITES[site][0]
        x, weight = torch.randn(7, shape.in_features, generator=generator), torch.randn(sum(shape.widths), 1)
        weight = weight * torch.randn(1, shape.in_features, generator=generator)
        inputs = batch.scaled_inputs(1, site, x)
        columns = shape.columns if len(inputs) > 1 else [slice(None)]
        y = torch.cat([part @ weight[of].T for part, of in zip(inputs, columns, strict=True)], 1)
        plain = y[:2].clone()
        batch.scale_output(1, site, y)
        batch.add_delta(1, site, x, y)
        expected = site_output(1, targets, x, weight, torch.zeros(()), [(adapter, 0.5), (scaled, 1.0)])
        torch.testing.assert_close(y[2:].double(), expected[2:], rtol=1e-4, atol=1e-3)
        assert torch.equal(y[:2], plain)


def test_what_does_not_fit_is_refused() -> None:
    slots = slots_of()
    with pytest.raises(ValueError, match="rank 65 is more than the tables hold, 64"):
        slots.pack(lora(65))
    with pytest.raises(ValueError, match="adapter slot 0 is clear"):
        slots.batch([AdapterSegment(0, 1, ((0, 1.0),))], 1)
    with pytest.raises(ValueError, match="device_bytes: .* needed for 16 ranks"):
        AdapterSlots.for_base(small_shape(), num_slots=1, backend="triton", device_bytes=100)
