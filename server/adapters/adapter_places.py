"""Places for adapters on a device: what is in which, whatever the form in which a device holds them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

import torch

from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.validation import Pause, go_on
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.packed_adapter import PackedAdapter, pack_adapter
from hotshoe.server.adapters.placed_adapter import SequenceTerms
from hotshoe.server.adapters.sites import site_shapes


class Placed(Protocol):
    """One adapter on the device; what it holds never changes."""

    @property
    def sequence_terms(self) -> SequenceTerms: ...
    @property
    def size_bytes(self) -> int: ...


P = TypeVar("P", bound=Placed)


class AdapterPlaces(ABC, Generic[P]):
    """Slots, and the way from a step's segments to what its rows compute.

    Loader threads place and clear; the engine's thread reads at the same time, without a lock: whatever it can see is
    complete and does not change while a request uses it.
    """

    def __init__(self, num_slots: int, base: BaseShape, *, device: torch.device | str, dtype: torch.dtype) -> None:
        self.num_slots = num_slots
        self.device = torch.device(device)
        self.dtype = dtype
        self._shapes = site_shapes(base)
        self._num_layers = base.num_layers
        self._placed: list[P | None] = [None] * num_slots

    # Loader threads.

    def pack(self, adapter: LoweredAdapter, *, pause: Pause = go_on) -> PackedAdapter:
        """Lays an adapter out in host memory in the device's dtype, so that `place_packed` is quick.

        `pause` is called between its parts, here and there, so that the caller may spread the work over time.

        Raises:
            ValueError: the adapter does not fit the base; the message names the linear.
        """
        packed = pack_adapter(adapter, self._shapes, self.dtype, as_stored=self._takes_stored, pause=pause)
        return replace(packed, device_bytes=self._device_bytes(packed))

    def place(self, slot: int, adapter: LoweredAdapter) -> None:
        """Packs an adapter and places it.

        Raises:
            ValueError: the adapter does not fit the base; nothing has changed.
        """
        self.place_packed(slot, self.pack(adapter))

    def place_packed(self, slot: int, adapter: PackedAdapter, *, pause: Pause = go_on, threads: int = 1) -> None:
        """Copies an adapter to the device in layer order, into a slot that is clear.

        `threads` copy it if it is large, this one among them; only this one calls `pause`.
        """
        if self._placed[slot] is not None:
            raise AssertionError(f"adapter slot {slot} is not clear")
        self._placed[slot] = self._store(slot, adapter, pause, threads)

    def clear(self, slot: int) -> None:
        """Frees a slot that no request uses; clearing a clear one does nothing. Takes no time."""
        placed, self._placed[slot] = self._placed[slot], None
        if placed is not None:
            self._give_back(placed)

    # The engine's thread.

    def sequence_terms(self, slot: int) -> SequenceTerms:
        """What the adapter in a slot is to a whole sequence."""
        return self._in_use(slot).sequence_terms

    def slot_bytes(self, slot: int) -> int:
        """Bytes that a slot fills, 0 if it is clear."""
        placed = self._placed[slot]
        return 0 if placed is None else placed.size_bytes

    @abstractmethod
    def batch(self, segments: Sequence[AdapterSegment], num_rows: int) -> Any:
        """What a step's rows compute beside the base; None if no row has anything to add.

        Args:
            segments: rows of one sequence each, ascending; those of one row come first.

        Raises:
            ValueError: segments overlap or exceed `num_rows`, or name a slot that is clear.
        """

    def bytes_to_come(self, device_bytes: int) -> int:
        """How much of the device's memory adapters of so many bytes may yet take, beside what is taken already."""
        return device_bytes  # what lies in no table

    def _in_use(self, slot: int) -> P:
        placed = self._placed[slot]
        if placed is None:
            raise ValueError(f"adapter slot {slot} is clear")
        return placed

    @property
    def _takes_stored(self) -> bool:
        """Whether placing makes of factors in 16 bits exactly what the tables are to hold."""
        return self.dtype is torch.float32

    def _device_bytes(self, adapter: PackedAdapter) -> int:
        """How much of the device's bytes an adapter takes."""
        return adapter.device_bytes

    @abstractmethod
    def _store(self, slot: int, adapter: PackedAdapter, pause: Pause, threads: int) -> P:
        """Copies what an adapter is to the device; complete when it returns."""

    @abstractmethod
    def _give_back(self, placed: P) -> None:
        """What `_store` took is free again."""


def check_segments(segments: Sequence[AdapterSegment], num_rows: int) -> None:
    """Raises ValueError unless segments are ascending, disjoint and within the rows."""
    end = 0
    for segment in segments:
        if not end <= segment.start < segment.end <= num_rows:
            raise ValueError(f"segments: {segment.start}:{segment.end} after {end}, of {num_rows} rows")
        end = segment.end
