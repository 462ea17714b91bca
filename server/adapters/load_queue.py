"""Loads that wait for a loader thread, and which may go on next. Bookkeeping, under residency's lock."""

import time
from typing import NamedTuple

from hotshoe.server.adapters.residency_entry import Entry, Phase
from hotshoe.server.adapters.residency_state import ResidencyState

ASK_SECONDS = 0.5  # how often waiting requests are asked whether they still want what is kept for them


class Look(NamedTuple):
    """What a loader finds at one moment: a load that can go on, or none, and in how many seconds it should look again;
    None: when somebody says that something has changed.
    """

    entry: Entry | None
    pause: float | None


class LoadQueue:
    """Entries that are QUEUED or AWAITING_SLOT, each at its adapter's place in the line of claims."""

    def __init__(self, state: ResidencyState) -> None:
        self._state = state
        self._pending: dict[Entry, None] = {}
        self.num_unread = 0  # of those, QUEUED
        self._asked = 0.0  # time.monotonic() seconds

    def put(self, entry: Entry, phase: Phase) -> None:
        entry.phase = phase
        self._pending[entry] = None
        self.num_unread += phase is Phase.QUEUED

    def look(self) -> Look:
        """Takes the first in line that can go on, or tells when that may change: both by one look at the clock, so that
        no lease lapses between them and is missed.
        """
        now = time.monotonic()
        entry = self.take(now)
        return Look(entry, self.seconds_until_asking(now) if entry is None else None)

    def take(self, now: float) -> Entry | None:
        """The first in line that can go on: PLACING, with its slot reserved, or READING. None if none can."""
        first = self._first(Phase.AWAITING_SLOT)
        if first is not None and self._state.reserve(first, now):
            del self._pending[first]
            return first
        entry = self._first(Phase.QUEUED)
        if entry is None:
            return None
        place = self._state.claims.order_of
        if first is not None and place(first.key) <= place(entry.key) and not self._state.host_has_room():
            return None
        del self._pending[entry]
        entry.phase = Phase.READING
        self.num_unread -= 1
        return entry

    def seconds_until_asking(self, now: float) -> float | None:
        """How long until requests should be asked whether they still want what others wait for; None: no need to."""
        if self._first(Phase.AWAITING_SLOT) is None or not self._state.leases_hold(now):
            return None
        return max(0.0, self._asked + ASK_SECONDS - now)

    def note_asking(self) -> None:
        """They are being asked now."""
        self._asked = time.monotonic()

    def check_integrity(self) -> None:
        """Raises AssertionError unless what is pending waits."""
        if self.num_unread != sum(entry.phase is Phase.QUEUED for entry in self._pending):
            raise AssertionError(f"{self.num_unread} unread loads do not add up")
        for entry in self._pending:
            if entry.phase not in (Phase.QUEUED, Phase.AWAITING_SLOT):
                raise AssertionError(f"{entry.key} is pending, but {entry.phase.value}")

    def _first(self, phase: Phase) -> Entry | None:
        pending = (entry for entry in self._pending if entry.phase is phase)
        return min(pending, key=lambda entry: self._state.claims.order_of(entry.key), default=None)
