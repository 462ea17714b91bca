"""Large factors stay where they were read, small ones are copied, and no memory is held that is not counted."""

import gc
import threading
import weakref
from dataclasses import replace

import canonical_adapters as canonical
import numpy as np
import pytest
import torch
from torch import Tensor

from hotshoe.registry.formats.base import LinearId, NormId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.stored_matrix import StoredMatrix
from hotshoe.server.adapters import factor_places, packed_factors
from hotshoe.server.adapters.adapter_slots import AdapterSlots


@pytest.fixture
def any_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_factors, "_LARGE_BYTES", 1)


class Room(np.ndarray):
    """Memory that a file was read into, and that can be referred to weakly."""


def read_together(
    adapter: LoweredAdapter, dtype: torch.dtype, *, gap: int = 0, scale: float = 1.0
) -> tuple[LoweredAdapter, Room]:
    """The adapter as its file has it: all B, then all A, the last ones first, `gap` numbers apart in one room."""
    left = [(name, which) for which in "ba" for name in reversed(adapter.linears)]
    matrices = [getattr(adapter.linears[name], which).to(dtype) for name, which in left]
    room = np.zeros(sum(matrix.numel() + gap for matrix in matrices), np.int16).view(Room)
    start, linears = 0, dict(adapter.linears)
    for (name, which), matrix in zip(left, matrices, strict=True):
        part = room[start : start + matrix.numel()].reshape(matrix.shape)
        part[:] = matrix.view(torch.int16).numpy()
        found = StoredMatrix(torch.from_numpy(part).view(dtype), scale if which == "b" else 1.0)
        linears[name] = replace(linears[name], **{which: found})
        start += matrix.numel() + gap
    return replace(adapter, linears=linears), room


def apart(adapter: LoweredAdapter) -> LoweredAdapter:
    """The same, each matrix in memory of its own."""

    def own(matrix: object) -> StoredMatrix:
        assert isinstance(matrix, StoredMatrix)
        return StoredMatrix(matrix.values.clone(), matrix.scale)

    linears = {name: replace(linear, a=own(linear.a), b=own(linear.b)) for name, linear in adapter.linears.items()}
    return replace(adapter, linears=linears)


def slots_of(dtype: torch.dtype) -> AdapterSlots:
    return AdapterSlots(1, canonical.small_shape(), dtype=dtype)


def contents(slots: AdapterSlots) -> list[Tensor]:
    tables = [part for table in slots._tables.values() for part in (table.a, table.b)]
    return [table.view(torch.int16 if table.dtype is torch.bfloat16 else torch.int32).clone() for table in tables]


@pytest.mark.parametrize("rank", [5, 8, 24, 40])
@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 1.0), (torch.bfloat16, 1.7), (torch.float16, 1.7)])
@pytest.mark.parametrize("table_dtype", [torch.float32, torch.bfloat16])
def test_tables_are_the_same_wherever_factors_lie(
    any_is_large: None, table_dtype: torch.dtype, dtype: torch.dtype, scale: float, rank: int
) -> None:
    adapter, room = read_together(canonical.lora(rank), dtype, gap=3, scale=scale)
    slots = slots_of(table_dtype)
    found = []
    for one in (adapter, apart(adapter)):
        slots.place(0, canonical.lora(40, seed=1))
        slots.clear(0)
        slots.place(0, one)
        slots.clear(0)
        found.append(contents(slots))
    assert any(bool(table.any()) for table in found[0])
    assert all(torch.equal(*tables) for tables in zip(*found, strict=True))


def test_two_threads_write_what_one_does_and_one_of_them_pauses(
    any_is_large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factor_places, "_SHARED_BYTES", 1)
    adapter, room = read_together(canonical.lora(40), torch.float16, scale=1.7)
    slots, paused, found = slots_of(torch.bfloat16), set(), []
    packed = slots.pack(adapter)
    for threads in (1, 2):
        slots.place(0, canonical.lora(40, seed=1))
        slots.clear(0)
        slots.place_packed(0, packed, pause=lambda: paused.add(threading.get_ident()), threads=threads)
        slots.clear(0)
        found.append(contents(slots))
    assert all(torch.equal(*tables) for tables in zip(*found, strict=True))
    assert paused == {threading.get_ident()}


def test_large_factors_are_not_copied_and_keep_their_memory(any_is_large: None) -> None:
    adapter, room = read_together(canonical.lora(8), torch.bfloat16, gap=16)
    held, first, size = weakref.ref(room), room.ctypes.data, room.nbytes - 2 * 16
    packed = slots_of(torch.bfloat16).pack(adapter)
    assert (packed.factors.data_ptr(), packed.size_bytes) == (first, size), "what lies between them is held, too"
    values = packed.factors.clone()
    del adapter, room
    gc.collect()
    assert held() is not None and torch.equal(packed.factors, values)
    del packed
    gc.collect()
    assert held() is None


@pytest.mark.parametrize("gap", [0, 33])
def test_small_factors_and_those_far_apart_are_copied(monkeypatch: pytest.MonkeyPatch, gap: int) -> None:
    """Of those far apart, what lies between would be held as well."""
    adapter, room = read_together(canonical.lora(8), torch.bfloat16, gap=gap)
    if gap:
        monkeypatch.setattr(packed_factors, "_LARGE_BYTES", 1)
    held = weakref.ref(room)
    packed = slots_of(torch.bfloat16).pack(adapter)
    assert packed.size_bytes == packed.factors.untyped_storage().nbytes() == adapter.size_bytes
    del adapter, room
    gc.collect()
    assert held() is None


def test_matrices_that_overlap_or_are_of_another_dtype_are_copied(any_is_large: None) -> None:
    adapter = canonical.lora(8)
    names = list(adapter.linears)
    shared = replace(adapter.linears[names[0]], b=adapter.linears[names[0]].b)
    twice = LoweredAdapter("VERA", {names[0]: shared, names[7]: shared})
    for one, slots in ((twice, slots_of(torch.float32)), (adapter, slots_of(torch.bfloat16))):
        packed = slots.pack(one)
        assert packed.factors.dtype is slots.dtype
        assert packed.layout.starts == ()


def test_what_is_kept_of_a_file_does_not_keep_the_rest() -> None:
    """Tensors of numpy's memory do not say how much of it they keep."""
    size, norm = canonical.HIDDEN, NormId(0, "input_layernorm")
    room = np.ones(1 << 16, np.float32).view(Room)
    held = weakref.ref(room)
    linears = {LinearId(0, "o_proj"): LoweredLinear(bias_delta=torch.from_numpy(room[:size]))}
    adapter = LoweredAdapter("LORA", linears, norms={norm: torch.from_numpy(room[size : 2 * size])})
    packed = slots_of(torch.float32).pack(adapter)
    del adapter, linears, room
    gc.collect()
    assert held() is None and torch.equal(packed.norms[norm], torch.ones(size))
