"""Places for adapters whose memory is taken once and never moves, filled on a stream of their own."""

import contextlib
import enum
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hotshoe.kernels.low_rank_table import units_of
from hotshoe.kernels.row_tiles import TileArrays, tile_rows
from hotshoe.kernels.site_updates import SiteUpdates
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.validation import Pause, go_on
from hotshoe.server.adapters.adapter_batch import AdapterBatch, AdapterSegment
from hotshoe.server.adapters.adapter_places import AdapterPlaces, check_segments
from hotshoe.server.adapters.packed_adapter import PackedAdapter
from hotshoe.server.adapters.placed_adapter import PlacedAdapter, SequenceTerms, SiteVectors
from hotshoe.server.adapters.rank_units import RankUnits
from hotshoe.server.adapters.row_group import RowGroup, Stack
from hotshoe.server.adapters.slot_tables import SlotTables, unit_bytes


class InputScales(enum.IntEnum):
    """How an adapter, or a step of several, scales the inputs of linears."""

    NONE = 0
    SHARED = 1  # alike for all targets of a site
    APART = 2


@dataclass(frozen=True, slots=True, eq=False)
class FixedAdapter:
    """An adapter in a slot. Its vectors are the slot's lines."""

    adapter: PlacedAdapter
    scales: InputScales
    copied: "torch.cuda.Event | None"  # what the first step that uses it waits for

    @property
    def has_linears(self) -> bool:
        """Whether it has a part in what the tables do."""
        return bool(self.adapter.ranks or self.adapter.vectors)

    @property
    def sequence_terms(self) -> SequenceTerms:
        return self.adapter.sequence_terms

    @property
    def size_bytes(self) -> int:
        return self.adapter.size_bytes


@dataclass(frozen=True, slots=True, eq=False)
class SlotBatch:
    """Which rows of a step take which slots."""

    slots: "FixedAdapterSlots"
    segments: tuple[tuple[int, int, tuple[tuple[int, float], ...]], ...]  # start, end, (slot, weight)
    tiles: TileArrays
    scales: InputScales

    def site(self, layer: int, site: str) -> SiteUpdates:
        """All slots at one site."""
        return self.slots.tables.site(layer, site)


class FixedAdapterSlots(AdapterPlaces[FixedAdapter]):
    """Places whose tables stay where they are; ranks are taken in units, wherever units are free."""

    def __init__(
        self,
        num_slots: int,
        base: BaseShape,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        device_bytes: int,
        max_rank: int,
    ) -> None:
        """Takes all memory: `device_bytes` of low-rank units, and for each slot a line of vectors at every site.

        Raises:
            ValueError: `device_bytes` do not hold a single unit.
        """
        super().__init__(num_slots, base, device=device, dtype=dtype)
        self._max_rank = max_rank
        self._unit_bytes = unit_bytes(self._shapes, dtype)
        num_units = min(device_bytes // self._unit_bytes, num_slots * units_of(max_rank))
        if num_units < 1:
            raise ValueError(f"device_bytes: {self._unit_bytes} are needed for 16 ranks of one adapter")
        self.tables = SlotTables(
            self._shapes,
            num_slots=num_slots,
            num_units=num_units,
            max_units=units_of(max_rank),
            device=self.device,
            dtype=dtype,
        )
        self._num_units = num_units
        self._units = RankUnits()
        self._units_lock = threading.Lock()
        self._copies = CopyStream(self.device)
        self._last: SlotBatch | None = None
        self._last_apart: AdapterBatch | None = None

    def pack(self, adapter: LoweredAdapter, *, pause: Pause = go_on) -> PackedAdapter:
        if adapter.rank > self._max_rank:
            raise ValueError(f"rank {adapter.rank} is more than the tables hold, {self._max_rank}")
        packed = super().pack(adapter, pause=pause)
        return pinned(packed) if self.device.type == "cuda" else packed

    def batch(self, segments: Sequence[AdapterSegment], num_rows: int) -> SlotBatch | None:
        check_segments(segments, num_rows)
        placed = {slot: self._in_use(slot) for segment in segments for slot, _ in segment.stack}
        rows = tuple(
            (s.start, s.end, tuple((slot, weight) for slot, weight in s.stack if placed[slot].has_linears))
            for s in segments
        )
        used = {slot: placed[slot] for _, _, stack in rows for slot, _ in stack}
        if not used:
            return None
        self._await_copies(used.values())
        scales = max(adapter.scales for adapter in used.values())
        last = self._last
        if last is None or (last.segments, last.scales) != (rows, scales) or len(last.tiles.row_entries) != num_rows:
            self._last = last = SlotBatch(self, rows, tile_rows(rows, num_rows), scales)
        return last

    def batch_apart(self, segments: Sequence[AdapterSegment], num_rows: int) -> AdapterBatch | None:
        """As `batch`, for rows that are computed operation by operation: of adapters that do more than tables hold."""
        check_segments(segments, num_rows)
        self._await_copies(self._in_use(slot) for segment in segments for slot, _ in segment.stack)
        key = tuple((segment.start, segment.end, self._stack(segment.stack)) for segment in segments)
        if not any(stack for _, _, stack in key):
            return None
        last = self._last_apart
        if last is None or last.key != key:
            group = RowGroup(key, kind="segmented", tables=self.tables.low_rank, shapes=self._shapes)
            self._last_apart = last = AdapterBatch(key, [group])
        return last

    def _stack(self, stack: Sequence[tuple[int, float]]) -> Stack:
        placed = [(self._in_use(slot).adapter, weight) for slot, weight in stack]
        return tuple((adapter, weight) for adapter, weight in placed if adapter.changes_layers)

    def _await_copies(self, adapters: Iterable[FixedAdapter]) -> None:
        for adapter in adapters:
            if adapter.copied is not None:
                torch.cuda.current_stream(self.device).wait_event(adapter.copied)

    def _device_bytes(self, adapter: PackedAdapter) -> int:
        """Whole units at every site, and what lies in no table."""
        vectors = sum(tensor.nbytes for found in adapter.vectors.values() for tensor in found.tensors())
        in_tables = adapter.layout.num_device_elements * self.dtype.itemsize + vectors
        return adapter.layout.num_units * self._unit_bytes + adapter.device_bytes - in_tables

    def _store(self, slot: int, adapter: PackedAdapter, pause: Pause, threads: int) -> FixedAdapter:
        with self._units_lock:
            units = self._units.take_scattered(adapter.layout.num_units, limit=self._num_units)
        try:
            with self._copies.copying() as copied:
                self.tables.write(slot, adapter, units)
                vectors = self.tables.vectors_of(slot, adapter.vectors)
                placed = adapter.placed(vectors, device=self.device, num_layers=self._num_layers)
        except BaseException:  # what lies in no table may find the device's memory full
            self._give_back_units(units)
            raise
        scales = max(map(_scales_of, adapter.vectors.values()), default=InputScales.NONE)
        return FixedAdapter(replace(placed, units=tuple(units)), scales, copied.event)

    def _give_back(self, placed: FixedAdapter) -> None:
        self._last_apart = None  # it holds the adapter's tensors
        self._give_back_units(placed.adapter.units)

    def _give_back_units(self, units: Iterable[int]) -> None:
        with self._units_lock:
            for unit in units:
                self._units.give_back(unit, 1)


@dataclass(slots=True)
class Copied:
    """When copies were done; None where they are done at once."""

    event: "torch.cuda.Event | None" = None


class CopyStream:
    """Runs copies to a device beside what computes there. The caller's thread waits for them, the engine's never."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextlib.contextmanager
    def copying(self) -> Iterator[Copied]:
        """Copies inside are complete when the block is left."""
        copied = Copied()
        if self._stream is None:
            yield copied
            return
        with torch.cuda.stream(self._stream):
            yield copied
            copied.event = torch.cuda.Event()
            copied.event.record(self._stream)
        copied.event.synchronize()  # lets the GIL go


def pinned(adapter: PackedAdapter) -> PackedAdapter:
    """The adapter in page-locked memory, from which copies run beside computing."""

    def pin(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.pin_memory()

    vectors = {
        site: SiteVectors(tuple(map(pin, found.inputs)), pin(found.output), pin(found.bias))
        for site, found in adapter.vectors.items()
    }
    return replace(adapter, factors=adapter.factors.pin_memory(), vectors=vectors)


def _scales_of(vectors: SiteVectors) -> InputScales:
    if all(scale is None for scale in vectors.inputs):
        return InputScales.NONE
    return InputScales.APART if len(vectors.inputs) > 1 else InputScales.SHARED
