"""Which adapters are in memory: from the registry to the host to the device, on demand, by `Loaders`.

The engine's thread asks with `acquire` and never waits; a request whose adapters are not there asks again after
`on_change`.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from hotshoe.registry.formats.base import BaseWeights
from hotshoe.server.adapters.adapter_key import digest_of
from hotshoe.server.adapters.adapter_leases import AdapterLeases, LeaseStore
from hotshoe.server.adapters.adapter_places import AdapterPlaces
from hotshoe.server.adapters.adapter_reader import AdapterReader
from hotshoe.server.adapters.load_board import LoadBoard
from hotshoe.server.adapters.loaders import Loaders, hurry
from hotshoe.server.adapters.lowered_cache import LoweredCache
from hotshoe.server.adapters.quarantine import Quarantine
from hotshoe.server.adapters.residency_entry import Entry, Phase
from hotshoe.server.adapters.resident import (
    AdapterSource,
    LoadProgress,
    LoadStage,
    ResidencyObserver,
    ResidentInfo,
    Tier,
    Unloaded,
)
from hotshoe.server.config import ResidencyConfig
from hotshoe.server.errors import AdapterSlotsFull, AdapterUnusable, Draining, ServerError

_log = logging.getLogger(__name__)

PATIENCE_SECONDS = 0.25  # that a load which only `load` waits for leaves the cores to others


class AdapterResidency:
    """The adapters in memory, by `adapter_key`, and the threads that load them.

    An adapter that a request or a pin holds is never evicted. Whoever asked first is served first: all adapters of its
    stack are kept from those who came later until it has taken them, or has not asked for a moment.
    """

    def __init__(
        self,
        *,
        registry: AdapterSource,
        base: BaseWeights,
        slots: AdapterPlaces[Any],
        config: ResidencyConfig,
        observer: ResidencyObserver | None = None,
        leases: LeaseStore | None = None,
        cache: LoweredCache | None = None,
    ) -> None:
        if slots.num_slots != config.adapter_slots:
            raise ValueError(f"adapter_slots: {config.adapter_slots}, but the device has {slots.num_slots}")
        self.on_change: Callable[[], None] = lambda: None
        self._slots = slots
        self._leases = AdapterLeases(leases, self._held) if leases is not None else None
        left = self._leases.note_departure if self._leases is not None else lambda: None
        self._board = LoadBoard(config, clear=slots.clear, observer=observer, left=left)
        self._state = self._board.state
        self._quarantine = Quarantine()
        self._merged: set[str] = set()
        self._loaders = Loaders(
            self._board,
            reader=AdapterReader(registry, base, config, cache=cache),
            slots=slots,
            config=config,
            leases=self._leases,
            on_turn_end=self._tell_engine,
        )
        self.pace = self._loaders.pace  # the engine tells it whether requests decode
        self._loaders.start()

    # The engine's thread.

    def acquire(self, keys: Sequence[str]) -> tuple[int, ...] | None:
        """Takes one reference to each adapter of a stack and returns their slots.

        None, and no reference, while one is not on the device; its load has been started. Never waits.

        Raises:
            AdapterUnusable: a load failed, and not long ago; the cause is kept. Or it is in quarantine.
            AdapterSlotsFull: pinned adapters leave too few slots, or bytes, for the stack ever to fit.
        """
        with self._board.locked():
            for key in keys:
                self._quarantine.check(key)
            entries = [self._state.entry(key) for key in keys]
            if not all(entry.on_device for entry in entries):
                self._miss(list(dict.fromkeys(entries)))
                return None
            for entry in entries:
                self._take(entry)
            self._state.claims.drop(keys)
            return tuple(entry.slot for entry in entries if entry.slot is not None)

    def release(self, keys: Sequence[str]) -> None:
        """Gives back what `acquire` took."""
        with self._board.locked():
            for key in keys:
                if (entry := self._state.find(key)) is None or not entry.references:
                    raise AssertionError(f"{key} is released more often than acquired")
                entry.references -= 1
                self._state.touch(entry)
                if entry.drop_when_idle and entry.is_free:
                    self._state.drop(entry, "unload")
            self._board.work.notify()

    def waits_for_room(self, keys: Sequence[str]) -> bool:
        """Whether a stack's load stands still until the device has room: what is there is in use, or kept."""
        with self._board.lock:
            return any((e := self._state.find(key)) is not None and e.phase is Phase.AWAITING_SLOT for key in keys)

    def quarantine(self, key: str, reason: str) -> None:
        """Refuses an adapter from now on, until it is unloaded; who has it already keeps it."""
        _log.warning("adapter %s is in quarantine: %s", key, reason)
        with self._board.lock:
            self._quarantine.put(key, reason)

    def adapter_load_seconds(self, key: str, *, since: float = 0.0) -> float:
        """How long its latest load took, from the first to ask; 0 if none ended since then, in monotonic seconds."""
        with self._board.lock:
            entry = self._state.find(key)
            return entry.load_seconds if entry and entry.load_started + entry.load_seconds >= since else 0.0

    # Any thread.

    def prefetch(self, key: str) -> None:
        """Starts loading an adapter that a request will ask for soon: to the device if nobody must go for it.

        Else to the host only, so that a long queue does not drive out what runs; `acquire` brings it further.
        """
        with self._board.locked():
            if self._board.closed or key in self._quarantine:
                return
            entry = self._state.entry(key)
            if not entry.has_reached(Tier.HOST) and entry.failure is None:
                entry.prefetched = True
                hurry(entry)
                self._start(entry, Tier.HOST)

    def load(
        self,
        key: str,
        *,
        tier: Tier = Tier.DEVICE,
        pin: bool = False,
        progress: Callable[[LoadProgress], None] = lambda progress: None,
        timeout_seconds: float = 60.0,
    ) -> ResidentInfo:
        """Loads an adapter and waits for it; with `pin` it then stays in that tier until `unload`.

        `progress` is called by this thread, once for each stage, the last time with READY and the adapter.

        Raises:
            AdapterUnusable: it could not be loaded, or is in quarantine.
            AdapterSlotsFull: no slot became free in that time, or none ever can.
            Draining: the server is shutting down.
        """
        if tier is Tier.DISK:
            raise ValueError("tier: expected host or device; on disk is where adapters are")
        deadline = time.monotonic() + timeout_seconds
        with self._board.locked():
            self._quarantine.check(key)
            entry = self._state.entry(key)
            entry.waiters += 1
        try:
            reported: LoadProgress | None = None
            while reported is None or reported.stage is not LoadStage.READY:
                with self._board.locked():
                    step = self._await_progress(entry, reported, tier=tier, pin=pin, deadline=deadline)
                progress(step)
                reported = step
        finally:
            with self._board.locked():
                entry.waiters -= 1
                self._state.claims.end_load(key, requested=entry.missed)
                if entry.drop_when_idle and entry.is_free:  # it was unloaded just as this ended
                    self._state.drop(entry, "unload")
                self._state.forget_if_gone(entry)
                self._board.work.notify()
        if pin:
            self._tell_engine()  # who waits may never fit now
        assert reported.adapter is not None, "READY comes with the adapter"
        return reported.adapter

    def unload(self, key: str) -> Unloaded:
        """Unpins an adapter and drops it, as soon as no request uses it; ends its quarantine. One not here is fine.

        The key of an adapter that has tasks stands for all of them.
        """
        with self._board.locked():
            was_refused = self._quarantine.let_out(key)
            parts = self._state.parts_of(key)
            found = was_refused or any(entry.is_held for entry in parts)
            in_use = not all(entry.is_free for entry in parts)
            for entry in parts:
                self._state.unpin(entry)
                entry.drop_when_idle = True
                if entry.is_free:
                    self._state.drop(entry, "unload")
                self._board.work.notify()
        self._tell_engine()  # there may be room
        return Unloaded(found, in_use)

    def keep_merged(self, digest: str) -> None:
        """Keeps an adapter that lies in the base's weights from being collected while this process runs.

        Raises:
            AdapterNotFound: it is not in the registry any more.
        """
        with self._board.lock:
            self._merged.add(digest)
        if self._leases is not None:
            self._leases.take(digest)

    def residents(self) -> list[ResidentInfo]:
        """Every adapter in memory, under the fastest tier that it is in."""
        with self._board.lock:
            return [entry.info() for entry in self._state.residents()]

    def check_integrity(self) -> None:
        """Raises AssertionError unless slots, bytes and references add up."""
        with self._board.lock:
            self._state.check_integrity(self._slots.slot_bytes)
            self._board.queue.check_integrity()

    def close(self) -> None:
        """Ends the loaders, after what they are at. Nothing is loaded any more; who waits in `load` gets Draining."""
        self._board.close()
        self._loaders.join()
        if self._leases is not None:
            self._leases.close()

    # Under the lock.

    def _take(self, entry: Entry) -> None:
        entry.references += 1
        self._state.touch(entry)
        if not entry.missed:  # else it was counted when it was not there
            self._board.events.lookup(True)
        entry.missed = False

    def _miss(self, entries: Sequence[Entry]) -> None:
        """Notes that a request waits for these, or raises why it need not."""
        try:
            self._check_open()
            for entry in entries:
                self._state.raise_failure(entry)
            self._state.check_fits(entries)
        except ServerError:
            self._state.claims.drop([entry.key for entry in entries])
            for entry in entries:
                self._state.forget_if_gone(entry)
            raise
        is_new = self._state.claims.renew([entry.key for entry in entries])
        for entry in entries:
            if not entry.on_device and not entry.missed:
                entry.missed = True
                hurry(entry)
                self._board.events.lookup(False)
            self._start(entry, Tier.DEVICE)
        if is_new:  # else nothing has changed for the loaders: they would only ask the engine again
            self._board.work.notify()

    def _start(self, entry: Entry, tier: Tier) -> None:
        """Has an adapter loaded, unless it is there, or on its way."""
        if tier is Tier.DEVICE:
            entry.target = tier
        if entry.phase is not Phase.IDLE or entry.has_reached(tier):
            return
        entry.load_started = time.monotonic()
        entry.healed.clear()
        entry.target = tier
        entry.stage = LoadStage.RESOLVING if entry.host is None else LoadStage.LOADING
        self._board.queue.put(entry, Phase.QUEUED if entry.host is None else Phase.AWAITING_SLOT)
        self._board.work.notify()

    def _await_progress(
        self, entry: Entry, reported: LoadProgress | None, *, tier: Tier, pin: bool, deadline: float
    ) -> LoadProgress:
        """Waits until there is something new to report of a load, and starts it if need be."""
        while True:
            self._state.raise_failure(entry)
            if entry.has_reached(tier):
                return self._finish_wait(entry, tier=tier, pin=pin)
            self._check_open()
            if tier is Tier.DEVICE:
                self._state.check_fits([entry])
                self._state.claims.renew([entry.key], lease_until=deadline)
            self._start(entry, tier)
            step = entry.progress()
            if step != reported:
                return step
            remaining = deadline - time.monotonic()
            if remaining <= 0 and entry.phase is Phase.AWAITING_SLOT:
                raise AdapterSlotsFull(f"adapter {entry.key}: no adapter slot became free in time")
            if remaining <= 0:
                raise AdapterUnusable(f"adapter {entry.key}: not loaded in time")
            self._board.progress.wait(min(remaining, PATIENCE_SECONDS))
            if time.monotonic() - entry.load_started > PATIENCE_SECONDS:
                hurry(entry)

    def _finish_wait(self, entry: Entry, *, tier: Tier, pin: bool) -> LoadProgress:
        if pin:
            self._board.progress.notify_all()  # other loads may never fit now
            self._state.pin(entry, tier)
        entry.drop_when_idle = False
        self._state.touch(entry)
        return entry.progress(ready=True)

    def _check_open(self) -> None:
        if self._board.closed:
            raise Draining("the server is shutting down")

    def _held(self) -> list[str]:
        with self._board.lock:
            return [*map(digest_of, self._state.held()), *self._merged]

    def _tell_engine(self) -> None:
        try:
            self.on_change()
        except Exception:
            _log.exception("on_change failed")
