"""The threads that bring adapters from the registry to the host and on to the device."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from hotshoe.registry.errors import RegistryError
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.store.healing import BlobBeingHealed, healing_elsewhere
from hotshoe.server.adapters.adapter_key import digest_of
from hotshoe.server.adapters.adapter_leases import AdapterLeases
from hotshoe.server.adapters.adapter_places import AdapterPlaces
from hotshoe.server.adapters.adapter_reader import AdapterReader
from hotshoe.server.adapters.load_board import LoadBoard
from hotshoe.server.adapters.loader_pace import LoaderPace
from hotshoe.server.adapters.one_core import let_others_first, run_when_idle, use_one_core
from hotshoe.server.adapters.residency_entry import Entry, Phase
from hotshoe.server.adapters.resident import LoadStage, Tier
from hotshoe.server.config import ResidencyConfig
from hotshoe.server.errors import AdapterUnusable

_IDLE_THREADS = 2  # that read and place an adapter, where nothing decodes

_log = logging.getLogger(__name__)


class Loaders:
    """Carry out the loads that wait on the board, the oldest request's first.

    Args:
        leases: on what is read; None where nothing is collected.
        on_turn_end: called without the lock when a load has come further, and when requests should ask again.

    Attributes:
        pace: keeps them to their share while requests decode.
    """

    def __init__(
        self,
        board: LoadBoard,
        *,
        reader: AdapterReader,
        slots: AdapterPlaces[Any],
        config: ResidencyConfig,
        leases: AdapterLeases | None,
        on_turn_end: Callable[[], None],
    ) -> None:
        self.pace = LoaderPace(config.loader_share, backlog=lambda: board.queue.num_unread)
        self._board = board
        self._state, self._queue = board.state, board.queue
        self._reader = reader
        self._slots = slots
        self._device_bytes = config.device_bytes
        self._leases = leases
        self._on_turn_end = on_turn_end
        self._threads = [
            threading.Thread(target=self._run, name=f"adapter-loader-{i}", daemon=True)
            for i in range(config.loader_threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        """Waits until they have ended, after what they are at; `LoadBoard.close` has them do so."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        use_one_core()
        let_others_first()
        while (entry := self._next_job()) is not None:
            self._take_turn(entry)
            self.pace.begin()
            try:
                self._read(entry) if entry.phase is Phase.READING else self._place(entry)
            except BlobBeingHealed as blob:
                self._await_healing(entry, blob)
            except Exception as error:
                self._fail(entry, error)
            self._end_turn(entry)
            self._on_turn_end()

    def _take_turn(self, entry: Entry) -> None:
        """A load that no request waits for leaves the cores to those who decode, until it takes too long for that."""
        with self._board.lock:
            if not (entry.missed or entry.prefetched):
                run_when_idle()
                entry.loader = threading.get_native_id()

    def _end_turn(self, entry: Entry) -> None:
        with self._board.lock:
            hurry(entry)

    def _next_job(self) -> Entry | None:
        """Waits for a load that can go on, the oldest request's first; None after `close`."""
        while True:
            with self._board.locked():
                while not self._board.closed and (look := self._queue.look()).entry is None and look.pause != 0.0:
                    self._board.work.wait(look.pause)
                if self._board.closed:
                    return None
                if look.entry is not None:
                    self._board.work.notify()  # there may be more to do
                    return look.entry
                self._queue.note_asking()
            self._on_turn_end()  # requests that still wait for what is kept for them ask again, which renews the lease

    def _read(self, entry: Entry) -> None:
        """Registry → host; and on to the device, if it is prefetched and nobody must go for it."""

        def on_stage(stage: LoadStage, record: AdapterRecord) -> None:
            with self._board.lock:
                entry.stage, entry.record = stage, record
                self._board.progress.notify_all()

        if self._leases is not None:
            self._leases.take(digest_of(entry.key))
        with healing_elsewhere(entry.healed):
            record, lowered, seconds = self._reader.read(
                entry.key, on_stage, pause=self.pace.pause, threads=self._threads_now()
            )
        started = time.perf_counter()
        packed = self._slots.pack(lowered, pause=self.pace.pause)
        seconds["lower"] += time.perf_counter() - started
        if packed.device_bytes > self._device_bytes:
            raise AdapterUnusable(f"takes {packed.device_bytes} bytes of the device's {self._device_bytes}")
        with self._board.locked():
            entry.record, entry.read_seconds = record, seconds
            self._state.keep_on_host(entry, packed)
            if entry.target is Tier.DEVICE:
                self._queue.put(entry, Phase.AWAITING_SLOT)
                self._state.trim_host()
                self._board.work.notify()
                return
            has_room = entry.prefetched and self._state.has_room(entry)
            if not (has_room and self._state.reserve(entry, time.monotonic())):
                self._finish(entry, "disk", seconds)
                return
        self._place(entry)

    def _place(self, entry: Entry) -> None:
        """Host → device, where every load has ended."""
        assert entry.slot is not None and entry.host is not None
        started = time.perf_counter()
        self._slots.place_packed(entry.slot, entry.host, pause=self.pace.pause, threads=self._threads_now())
        seconds = {**entry.read_seconds, "place": time.perf_counter() - started}
        with self._board.locked():
            self._finish(entry, "disk" if entry.read_seconds else "host", seconds)

    def _threads_now(self) -> int:
        return 1 if self.pace.decoding else _IDLE_THREADS

    def _finish(self, entry: Entry, source: str, seconds: dict[str, float]) -> None:
        entry.phase, entry.prefetched, entry.read_seconds = Phase.IDLE, False, {}
        entry.load_seconds = time.monotonic() - entry.load_started
        self._state.claims.extend(entry.key)
        self._state.touch(entry)
        self._board.events.loaded(entry.key, source, seconds)
        if entry.drop_when_idle and entry.is_free and not entry.missed:
            self._state.drop(entry, "unload")
        self._state.trim_host()
        self._board.progress.notify_all()
        self._board.work.notify()

    def _await_healing(self, entry: Entry, blob: BlobBeingHealed) -> None:
        """Has an adapter read again once a blob of it is whole; this loader goes on with others."""
        with self._board.locked():
            entry.phase = Phase.HEALING
            entry.healed[blob.digest] = blob.damage
        blob.healed.add_done_callback(lambda healed: self._end_healing(entry, healed))

    def _end_healing(self, entry: Entry, healed: "Future[bool]") -> None:
        if healed.cancelled():  # by whoever closes the registry
            return
        if isinstance(error := healed.exception(), Exception):
            self._fail(entry, error)
            self._on_turn_end()
            return
        with self._board.locked():
            self._queue.put(entry, Phase.QUEUED)
            self._board.work.notify()

    def _fail(self, entry: Entry, error: Exception) -> None:
        known = isinstance(error, RegistryError | AdapterUnusable | OSError | ValueError | MemoryError)
        _log.warning("adapter %s cannot be loaded: %s", entry.key, error, exc_info=None if known else error)
        error.__traceback__ = None  # it would keep the frames, and their tensors, alive
        with self._board.locked():
            self._state.fail(entry, error)
            self._board.events.load_failed(entry.key, error)
            self._board.progress.notify_all()
            self._board.work.notify()


def hurry(entry: Entry) -> None:
    """Whoever works on this load gets a core beside those who decode. Under the lock."""
    if entry.loader is not None:
        let_others_first(entry.loader)
        entry.loader = None
