"""Adapters in 16 bits: the host holds what their file does, the device what the same numbers in 32 bits would give."""

from collections.abc import Callable
from dataclasses import replace

import canonical_adapters as canonical
import pytest
import torch
from torch import Tensor

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.stored_matrix import StoredMatrix
from hotshoe.server.adapters import adapter_slots
from hotshoe.server.adapters.adapter_places import AdapterPlaces
from hotshoe.server.adapters.adapter_reader import check_finite
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots

RANKS = {**dict.fromkeys(canonical.TARGETS, 24), "k_proj": 3, "up_proj": 16}
FLAT: dict[str, int] = dict.fromkeys(canonical.TARGETS, 5)  # lies folded
MIXED = LinearId(1, "down_proj")


def stored(adapter: LoweredAdapter, dtype: torch.dtype, scale: float) -> LoweredAdapter:
    def of(linear: LoweredLinear) -> LoweredLinear:
        assert isinstance(linear.a, Tensor) and isinstance(linear.b, Tensor)
        return replace(linear, a=StoredMatrix(linear.a.to(dtype)), b=StoredMatrix(linear.b.to(dtype), scale))

    return replace(adapter, linears={name: of(linear) for name, linear in adapter.linears.items()})


def widened(adapter: LoweredAdapter) -> LoweredAdapter:
    linears = {}
    for name, linear in adapter.linears.items():
        assert linear.factors is not None
        linears[name] = replace(linear, a=linear.factors[0], b=linear.factors[1])
    return replace(adapter, linears=linears)


def growing(dtype: torch.dtype) -> AdapterSlots:
    return AdapterSlots(2, canonical.small_shape(), dtype=dtype)


def uncompiled(dtype: torch.dtype) -> AdapterSlots:
    """As they are without a compiler."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adapter_slots, "_can_compile", lambda: False)
        return growing(dtype)


def fixed(dtype: torch.dtype) -> FixedAdapterSlots:
    return FixedAdapterSlots(2, canonical.small_shape(), device="cpu", dtype=dtype, device_bytes=1 << 24, max_rank=32)


def contents(slots: AdapterPlaces, adapter: LoweredAdapter) -> list[Tensor]:
    """The tables' bits, all zero but for what the adapter in a slot left there."""
    slots.place(0, canonical.lora(32))
    tables = slots.tables.low_rank if isinstance(slots, FixedAdapterSlots) else slots._tables
    tensors = [tensor for table in tables.values() for tensor in (table.a, table.b)]
    for tensor in tensors:
        tensor.zero_()
    slots.clear(0)
    slots.place(0, adapter)
    return [tensor.view(torch.int16 if tensor.dtype is torch.bfloat16 else torch.int32).clone() for tensor in tensors]


@pytest.mark.parametrize("ranks", [RANKS, FLAT], ids=["units", "folded"])
@pytest.mark.parametrize("scale", [1.0, 1.7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [growing, uncompiled, fixed])
def test_slots_hold_the_same_bits_as_of_the_same_numbers_in_32(
    make: Callable[[torch.dtype], AdapterPlaces],
    table_dtype: torch.dtype,
    dtype: torch.dtype,
    scale: float,
    ranks: dict[str, int],
) -> None:
    adapter = stored(canonical.lora(ranks, bias=True), dtype, scale)
    found, wanted = (contents(make(table_dtype), one) for one in (adapter, widened(adapter)))
    assert any(bool(tensor.any()) for tensor in wanted)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_large_factors_are_rounded_as_small_ones_are() -> None:
    base = canonical.small_shape()
    wide = 1 << 12
    linears = {
        name: replace(shape, in_features=wide) if name.target == "o_proj" else shape
        for name, shape in base.linears.items()
    }
    a, b = torch.randn(16, wide), torch.randn(canonical.HIDDEN, 16)
    adapter = LoweredAdapter("LORA", {LinearId(0, "o_proj"): LoweredLinear(a=a, b=b)})
    packed = AdapterSlots(1, replace(base, linears=linears), dtype=torch.bfloat16).pack(adapter)
    assert torch.equal(packed.factors, torch.cat([a.flatten(), b.flatten()]).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_host_holds_and_counts_what_the_file_has(dtype: torch.dtype) -> None:
    adapter = stored(canonical.lora(RANKS), dtype, 1.7)
    slots = growing(torch.float32)
    packed, wide = slots.pack(adapter), slots.pack(widened(adapter))
    assert packed.factors.dtype is dtype
    assert packed.size_bytes == packed.factors.untyped_storage().nbytes() == adapter.size_bytes
    assert 2 * packed.size_bytes == wide.size_bytes and packed.device_bytes == wide.device_bytes
    slots.place_packed(0, packed)
    assert slots.slot_bytes(0) == packed.device_bytes


def test_what_only_in_part_is_in_16_bits_lies_on_the_host_as_on_the_device() -> None:
    adapter = stored(canonical.lora(RANKS), torch.bfloat16, 1.7)
    linears = {**adapter.linears, MIXED: widened(adapter).linears[MIXED]}
    slots = growing(torch.float32)
    assert slots.pack(replace(adapter, linears=linears)).factors.dtype is torch.float32


def test_a_scale_that_overflows_what_is_stored_is_refused() -> None:
    linear = canonical.lora(targets=["o_proj"]).linears[LinearId(0, "o_proj")]
    assert isinstance(linear.a, Tensor) and isinstance(linear.b, Tensor)
    for scale, is_sound in ((1e18, True), (1e30, False)):
        b = StoredMatrix((1e15 * linear.b).bfloat16(), scale)
        adapter = LoweredAdapter("LORA", {LinearId(0, "o_proj"): replace(linear, b=b)})
        if is_sound:
            check_finite(adapter)
            continue
        with pytest.raises(InvalidAdapter, match="finite"):
            check_finite(adapter)
