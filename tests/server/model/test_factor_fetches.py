"""What is asked for ahead is what is read: every line of the adapters' factors, by the thread that needs it."""

import ctypes

import canonical_adapters as canonical
import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("numba")
from hotshoe.kernels.cpu.factor_fetch import LINE
from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable, units_of
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.sites import SITES, site_shapes
from hotshoe.server.model import factor_fetches
from hotshoe.server.model.factor_fetches import FactorFetches

ADAPTERS = (
    canonical.lora(8, seed=1),
    canonical.lora({"q_proj": 1, "k_proj": 40, "v_proj": 5, "o_proj": 17}, seed=2, targets=canonical.TARGETS[:4]),
    canonical.lora(16, seed=3, targets=("up_proj", "down_proj")),
)


@pytest.fixture
def slots() -> AdapterSlots:
    slots = AdapterSlots(4, canonical.small_shape(), dtype=torch.bfloat16)
    for slot, adapter in enumerate(ADAPTERS, start=1):
        slots.place(slot, adapter)
    return slots


def fetches_of(slots: AdapterSlots, team: int) -> tuple[FactorFetches, np.ndarray]:
    """Of two rows of the first adapter, one of each other: and its table."""
    rows = [1, 1, 2, 3]
    batch = slots.batch([AdapterSegment(row, row + 1, ((slot, 1.0),)) for row, slot in enumerate(rows)], len(rows))
    assert batch is not None
    terms = batch.row_terms(num_rows=len(rows), num_layers=canonical.LAYERS)
    assert terms is not None
    shapes = site_shapes(canonical.small_shape())
    sites = [shapes[0, site] for site in SITES]
    widths = [
        shape.widths[0] if name == "gate_up" else sum(shape.widths) for name, shape in zip(SITES, sites, strict=True)
    ]
    starts = np.array([[width * i // team for i in range(team + 1)] for width in widths])
    found = FactorFetches(terms, sites, starts)
    table = (ctypes.c_int64 * (team * 4 * 4)).from_address(found.address)
    return found, np.ctypeslib.as_array(table).reshape(team, 4, 4)


def asked(address: int, count: int) -> set[int]:
    return set((ctypes.c_int32 * int(count)).from_address(int(address))) if count else set()


def lines_of(view: Tensor, whole: Tensor) -> set[int]:
    """The cache lines of a 2-dimensional view, from where the whole tensor begins."""
    starts = view.storage_offset() + np.arange(view.shape[0])[:, None] * view.stride(0) + np.arange(view.shape[1])
    return set((starts * whole.element_size() // LINE).ravel().tolist())


def read(table: LowRankTable, slots: AdapterSlots, site: str) -> tuple[set[int], set[int]]:
    a: set[int] = set()
    b: set[int] = set()
    for slot in (1, 2, 3):
        placed = slots._placed[slot]
        assert placed is not None
        ranks = placed.ranks.get((0, site), ())
        for target, rank in enumerate(ranks):
            b |= lines_of(table.b_of(placed.first_unit, target, rank), table.b)
        for unit in range(units_of(max(ranks, default=0))):
            lines = table.a[placed.first_unit + unit]
            a |= lines_of(lines[: len(lines) // 2] if placed.folded else lines, table.a)
    assert [slots._placed[slot].folded for slot in (1, 2, 3)] == [True, False, False]
    return a, b


@pytest.mark.parametrize("team", [1, 2, 3])
def test_every_line_that_is_read_is_asked_for_and_no_other(slots: AdapterSlots, team: int) -> None:
    _, table = fetches_of(slots, team)
    for index, site in enumerate(SITES):
        expected_a, expected_b = read(slots._tables[0, site], slots, site)
        asked_a = set().union(*(asked(*table[thread, index, :2]) for thread in range(team)))
        asked_b = set().union(*(asked(*table[thread, index, 2:]) for thread in range(team)))
        assert asked_a == expected_a, site
        # a thread's columns need not begin where a line does
        assert asked_b >= expected_b and len(asked_b) <= len(expected_b) + UNIT_RANK * 4 * team, site


def test_a_site_without_factors_asks_for_nothing(slots: AdapterSlots) -> None:
    batch = slots.batch([AdapterSegment(0, 1, ((3, 1.0),))], 1)
    assert batch is not None
    terms = batch.row_terms(num_rows=1, num_layers=canonical.LAYERS)
    assert terms is not None
    shapes = site_shapes(canonical.small_shape())
    found = FactorFetches(terms, [shapes[0, site] for site in SITES], np.array([[0, 80], [0, 48], [0, 80], [0, 48]]))
    table = np.ctypeslib.as_array((ctypes.c_int64 * 16).from_address(found.address)).reshape(4, 4)
    assert table[:2, 1].tolist() == [0, 0] and table[:2, 3].tolist() == [0, 0]
    assert table[2, 1] and table[3, 1]


def test_no_more_is_asked_for_than_the_cache_holds(slots: AdapterSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factor_fetches, "MOST_LINES", 20)
    _, table = fetches_of(slots, 1)
    assert table[0, :, 1::2].sum(axis=1).tolist() == [20] * 4
