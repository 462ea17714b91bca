"""The adapters on the device: low-rank tables shared by all slots, and what each slot holds beside them."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from hotshoe.kernels.low_rank import LowRankKind
from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable
from hotshoe.registry.formats.base import BaseShape, BlockId
from hotshoe.registry.formats.lowered import Bottleneck
from hotshoe.registry.validation import Pause
from hotshoe.server.adapters.adapter_batch import AdapterBatch, AdapterSegment
from hotshoe.server.adapters.adapter_places import AdapterPlaces, check_segments
from hotshoe.server.adapters.factor_layout import FactorLayout
from hotshoe.server.adapters.factor_places import CompiledPlaces, FactorPlaces, TensorPlaces
from hotshoe.server.adapters.fixed_adapter_slots import FixedAdapterSlots
from hotshoe.server.adapters.packed_adapter import PackedAdapter
from hotshoe.server.adapters.packed_bottleneck import PackedBottleneck, pack_bottleneck
from hotshoe.server.adapters.placed_adapter import PlacedAdapter
from hotshoe.server.adapters.rank_units import RankUnits
from hotshoe.server.adapters.row_group import RowGroup, Stack
from hotshoe.server.adapters.sites import SiteId

_FIRST_CAPACITY = 8  # units that a table has at first, where untouched memory costs something


class AdapterSlots(AdapterPlaces[PlacedAdapter]):
    """Places whose tables grow: memory is taken as adapters come, and moves.

    Args:
        num_slots: how many adapters it holds at once.
        base: the shapes that adapters must fit.
        dtype: of the low-rank factors; float32 is exact, bfloat16 halves what a step reads.
        kind: how rows that are one sequence each are computed; "gathered" needs the CPU.
    """

    def __init__(
        self,
        num_slots: int,
        base: BaseShape,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        kind: LowRankKind = "gathered",
    ) -> None:
        super().__init__(num_slots, base, device=device, dtype=dtype)
        self._kind = kind
        self._tables: Mapping[SiteId, LowRankTable] = {}
        self._places: dict[int, tuple[tuple[FactorLayout, torch.dtype], FactorPlaces]] = {}  # by first unit
        self._compiled = kind == "gathered" and self.device.type == "cpu" and _can_compile()
        self._capacity = 0  # units that every table holds
        # On a CPU memory that was never written to is free, so the tables seldom have to grow.
        self._first_capacity = 2 * num_slots if self.device.type == "cpu" else _FIRST_CAPACITY
        self._units = RankUnits()
        self._units_lock = threading.Lock()  # held for moments
        self._writing = threading.Lock()  # held while tensors are copied; the engine's thread never takes it
        self._decodes: RowGroup | None = None
        self._last: AdapterBatch | None = None

    @classmethod
    def for_base(
        cls,
        base: BaseShape,
        *,
        num_slots: int,
        backend: str,
        device: torch.device | str = "cpu",
        device_bytes: int = 1 << 31,
        max_rank: int = 256,
    ) -> "AdapterPlaces[Any]":
        """Slots in the form and the precision of a base that `backend` runs.

        NF4 kernels round activations to bfloat16 themselves, so bfloat16 factors add no error of another class; the
        backends that compute in float32 get float32 factors. `device_bytes` and `max_rank` size tables that never move.
        """
        if backend == "triton":
            dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
            return FixedAdapterSlots(
                num_slots, base, device=device, dtype=dtype, device_bytes=device_bytes, max_rank=max_rank
            )
        if backend == "reference":
            return cls(num_slots, base, device=device, kind="reference")
        if torch.device(device).type != "cpu":
            return cls(num_slots, base, device=device, dtype=torch.bfloat16, kind="segmented")
        return cls(num_slots, base, device=device, dtype=torch.bfloat16 if backend == "cpu_nf4" else torch.float32)

    def batch(self, segments: Sequence[AdapterSegment], num_rows: int) -> AdapterBatch | None:
        check_segments(segments, num_rows)
        key = tuple((segment.start, segment.end, self._stack(segment.stack)) for segment in segments)
        if not any(stack for _, _, stack in key):
            return None
        if self._last is None or self._last.key != key:
            self._last = AdapterBatch(key, self._groups(key))
        return self._last

    def bytes_to_come(self, device_bytes: int) -> int:
        return 2 * device_bytes  # the old tables are read while larger ones are filled

    def _stack(self, stack: Sequence[tuple[int, float]]) -> Stack:
        placed = [(self._in_use(slot), weight) for slot, weight in stack]
        return tuple((adapter, weight) for adapter, weight in placed if adapter.changes_layers)

    def _groups(self, key: Sequence[tuple[int, int, Stack]]) -> list[RowGroup]:
        tables = self._tables  # read after the adapters: it holds at least theirs
        if self._kind != "gathered":
            return [RowGroup(tuple(key), kind=self._kind, tables=tables, shapes=self._shapes)]
        num_decodes = next((i for i, (start, end, _) in enumerate(key) if end != i + 1 or start != i), len(key))
        gathered = [not any(adapter.folded for adapter, _ in stack) for _, _, stack in key[:num_decodes]]
        decodes = tuple(part for part, chosen in zip(key, gathered, strict=False) if chosen)
        rest = (*(part for part, chosen in zip(key, gathered, strict=False) if not chosen), *key[num_decodes:])
        if self._decodes is None or self._decodes.key != decodes or self._decodes.tables is not tables:
            self._decodes = RowGroup(decodes, kind="gathered", tables=tables, shapes=self._shapes)
        groups = [self._decodes, RowGroup(rest, kind="segmented", tables=tables, shapes=self._shapes)]
        return [group for group in groups if group.has_stacks]

    def _store(self, slot: int, adapter: PackedAdapter, pause: Pause, threads: int) -> PlacedAdapter:
        vectors = {site: found.to(self.device) for site, found in adapter.vectors.items()}
        placed = self._packed(adapter.placed(vectors, device=self.device, num_layers=self._num_layers), pause)
        if not adapter.layout.sites:
            return placed
        with self._writing:
            first_unit = self._write(adapter, pause, threads)
        units = range(first_unit, first_unit + adapter.layout.num_units)
        return replace(placed, units=units, folded=self._folds(adapter.layout))

    @property
    def _takes_stored(self) -> bool:
        return self._compiled or super()._takes_stored

    def _folds(self, layout: FactorLayout) -> bool:
        """Whether factors are to lie as compiled steps read them fastest."""
        return layout.folds and self._kind == "gathered" and self.dtype is torch.bfloat16

    def _packed(self, placed: PlacedAdapter, pause: Pause) -> PlacedAdapter:
        """The same, with its networks as compiled steps read them, where those may be."""
        if self.dtype is not torch.bfloat16 or self.device.type != "cpu" or not placed.bottlenecks:
            return placed
        packed: dict[BlockId, PackedBottleneck] = {}
        size_bytes = placed.size_bytes
        for block, network in placed.bottlenecks.items():
            assert isinstance(network, Bottleneck), "the host's are not packed"
            packed[block] = pack_bottleneck(network, self.dtype)
            size_bytes += packed[block].size_bytes - sum(tensor.nbytes for tensor in network.tensors())
            pause()
        return replace(placed, bottlenecks=packed, size_bytes=size_bytes)

    def _give_back(self, placed: PlacedAdapter) -> None:
        if placed.units:
            with self._units_lock:
                self._units.give_back(placed.first_unit, len(placed.units))

    # Writing the tables, under `_writing`.

    def _write(self, adapter: PackedAdapter, pause: Pause, threads: int) -> int:
        num_units = adapter.layout.num_units
        with self._units_lock:
            first_unit = self._units.take(num_units)
        try:
            self._reserve(adapter.layout.ranks)
            self._copy(adapter, first_unit, pause, threads)
        except BaseException:
            with self._units_lock:
                self._units.give_back(first_unit, num_units)
            raise
        return first_unit

    def _reserve(self, sites: Iterable[SiteId]) -> None:
        """Makes the tables that an adapter needs, and all of them large enough. The engine keeps the old ones."""
        missing = [site for site in sites if site not in self._tables]
        if not missing and self._units.end <= self._capacity:
            return
        tables = dict(self._tables)
        if self._units.end > self._capacity:
            self._capacity = max(2 * self._capacity, self._units.end, self._first_capacity)
            tables = {site: self._grown(site, table) for site, table in tables.items()}
        for site in missing:
            tables[site] = self._new_table(site)
        self._places.clear()
        self._tables = tables

    def _new_table(self, site: SiteId) -> LowRankTable:
        shape = self._shapes[site]
        a = torch.empty(
            self._capacity, shape.in_features, len(shape.widths) * UNIT_RANK, dtype=self.dtype, device=self.device
        )
        b = torch.empty(self._capacity * UNIT_RANK, sum(shape.widths), dtype=self.dtype, device=self.device)
        return LowRankTable(a, b, shape.widths)

    def _grown(self, site: SiteId, old: LowRankTable) -> LowRankTable:
        new = self._new_table(site)
        new.a[: old.a.shape[0]] = old.a
        new.b[: old.b.shape[0]] = old.b
        return new

    def _copy(self, adapter: PackedAdapter, first_unit: int, pause: Pause, threads: int) -> None:
        factors = adapter.factors.to(self.device)  # at once: on a device, many small copies would take longer
        places = self._places_of(adapter.layout, first_unit, factors.dtype)
        places.write(factors, adapter.scales, pause, threads=threads)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    def _places_of(self, layout: FactorLayout, first_unit: int, dtype: torch.dtype) -> FactorPlaces:
        """Where factors of a layout go; kept for the next adapter that is placed there."""
        kept_key, places = self._places.get(first_unit, (None, None))
        if places is None or kept_key != (layout, dtype):
            folded = self._folds(layout)
            if self._compiled:
                places = CompiledPlaces(layout, self._tables, first_unit, folded=folded, dtype=dtype)
            else:
                places = TensorPlaces(layout, self._tables, first_unit, folded=folded)
            self._places[first_unit] = (layout, dtype), places
        return places


def _can_compile() -> bool:
    """Whether there is a compiler for copies; it has compiled them then."""
    try:
        from hotshoe.kernels.cpu import transposes
    except ImportError:  # no numba
        return False
    transposes.warm()
    return True
