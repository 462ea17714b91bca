"""Who is where: slots, budgets, references, and who may be evicted for whom. Bookkeeping, under its owner's lock."""

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator

from hotshoe.server.adapters.adapter_key import is_part_of
from hotshoe.server.adapters.claims import Claims
from hotshoe.server.adapters.packed_adapter import PackedAdapter
from hotshoe.server.adapters.residency_entry import Entry, Phase
from hotshoe.server.adapters.resident import Tier
from hotshoe.server.config import ResidencyConfig
from hotshoe.server.errors import AdapterSlotsFull, AdapterUnusable

RETRY_SECONDS = 5.0  # how long a failed load stays failed


class ResidencyState:
    """The entries and the budgets. Not thread-safe.

    Thousands of adapters may lie on the host: what is done for each request or load looks at those few only that are on
    the device, pinned or failed, and at the oldest on the host.

    Args:
        clear: frees a slot's tensors; quick.
        evicted: told key, tier and reason of each eviction.
        left: called after an adapter was forgotten altogether.
    """

    def __init__(
        self,
        config: ResidencyConfig,
        *,
        clear: Callable[[int], None],
        evicted: Callable[[str, Tier, str], None],
        left: Callable[[], None] = lambda: None,
    ) -> None:
        self._config = config
        self._clear = clear
        self._evicted = evicted
        self._left = left
        self._entries: dict[str, Entry] = {}
        self._free_slots = list(range(config.adapter_slots))
        self._holders: dict[int, Entry] = {}  # of the other slots
        self._pinned: dict[Entry, None] = {}
        self._failed: dict[Entry, None] = {}
        self._on_host: OrderedDict[Entry, None] = OrderedDict()  # the least recently used first
        self._device_used = 0
        self._host_used = 0
        self.claims = Claims()
        self._uses = itertools.count(1)

    # Entries.

    def find(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def entry(self, key: str) -> Entry:
        """The adapter's entry, new if nobody asked before."""
        entry = self._entries.get(key)
        if entry is None:
            self._forget_failures()
            entry = self._entries[key] = Entry(key)
        return entry

    def parts_of(self, key: str) -> list[Entry]:
        """The adapter's entry, or those of its tasks."""
        return [entry for other, entry in self._entries.items() if is_part_of(other, key)]

    def held(self) -> list[str]:
        """The adapters that are somewhere, or are being loaded."""
        return [entry.key for entry in self._all() if entry.is_held]

    def residents(self) -> Iterator[Entry]:
        on_device = [entry for entry in self._holders.values() if entry.on_device]
        yield from on_device
        yield from (entry for entry in self._on_host if not entry.on_device)

    def touch(self, entry: Entry) -> None:
        """It was used now."""
        entry.used, entry.last_use = next(self._uses), time.time()
        if entry in self._on_host:
            self._on_host.move_to_end(entry)

    def pin(self, entry: Entry, tier: Tier) -> None:
        """Keeps it in that tier, or in a faster one where it is kept already."""
        entry.pinned = max(tier, entry.pinned or tier, key=list(Tier).index)
        self._pinned[entry] = None

    def unpin(self, entry: Entry) -> None:
        entry.pinned = None
        self._pinned.pop(entry, None)

    def fail(self, entry: Entry, error: Exception) -> None:
        """Its load ended in an error."""
        if entry.slot is not None:
            self._give_back_slot(entry)
        entry.phase, entry.prefetched = Phase.IDLE, False
        entry.failure, entry.failed_at = error, time.monotonic()
        self._failed[entry] = None
        if entry.host is not None:
            self.drop_host(entry)

    def raise_failure(self, entry: Entry) -> None:
        """Raises AdapterUnusable if its last load failed a moment ago; later it may be tried again."""
        if entry.failure is None:
            return
        if time.monotonic() - entry.failed_at >= RETRY_SECONDS:
            self._forget_failure(entry)
            return
        raise AdapterUnusable(f"adapter {entry.key}: {entry.failure}") from entry.failure

    # The device.

    def check_fits(self, entries: Collection[Entry]) -> None:
        """Raises AdapterSlotsFull if pinned adapters leave too little for these ever to be on the device together."""
        pinned = [e for e in self._pinned if e.holds_slot and e not in entries]
        slots = self._config.adapter_slots - len(pinned)
        if len(entries) > slots:
            raise AdapterSlotsFull(f"{len(entries)} adapter slots are needed, {slots} are not pinned")
        room = self._config.device_bytes - sum(e.device_bytes for e in pinned)
        needed = sum(e.device_bytes for e in entries)
        if needed > room:
            raise AdapterSlotsFull(f"{needed} bytes for adapters are needed, {room} are not pinned")

    def has_room(self, entry: Entry) -> bool:
        """Whether a slot and its bytes are free, so that nobody must go for it."""
        return bool(self._free_slots) and self._device_used + entry.device_bytes <= self._config.device_bytes

    def reserve(self, entry: Entry, now: float) -> bool:
        """Gives it a slot and its bytes, by evicting what no lease keeps at `now`, in time.monotonic() seconds, and
        nobody uses. False, and nothing is evicted, if that fails.
        """
        victims: list[Entry] = []
        slots, room = len(self._free_slots), self._config.device_bytes - self._device_used
        candidates = iter(sorted(self._evictable(entry, now), key=lambda e: e.used))
        while slots == 0 or room < entry.device_bytes:
            victim = next(candidates, None)
            if victim is None:
                return False
            victims.append(victim)
            slots, room = slots + 1, room + victim.device_bytes
        for victim in victims:
            self.leave_device(victim, "lru")
        entry.slot = self._free_slots.pop()
        self._holders[entry.slot] = entry
        entry.phase = Phase.PLACING
        self._device_used += entry.device_bytes
        return True

    def leases_hold(self, now: float) -> bool:
        """Whether an idle adapter is kept at `now` for a request that has yet to take it."""
        leased = self.claims.leased(now)
        holders = self._holders.values()
        return any(e.on_device and e.is_free and not e.holds_slot and e.key in leased for e in holders)

    def leave_device(self, entry: Entry, reason: str) -> None:
        """Frees the slot of an adapter that nobody uses."""
        assert entry.on_device and not entry.references, "only what is free is evicted"
        self._give_back_slot(entry)
        self._evicted(entry.key, Tier.DEVICE, reason)
        self.forget_if_gone(entry)

    def _evictable(self, claimant: Entry, now: float) -> Iterator[Entry]:
        kept = self.claims.kept_from(self.claims.order_of(claimant.key), now)
        for entry in self._holders.values():
            if entry.on_device and entry.is_free and not entry.holds_slot and entry.key not in kept:
                yield entry

    def _give_back_slot(self, entry: Entry) -> None:
        assert entry.slot is not None
        self._clear(entry.slot)
        del self._holders[entry.slot]
        self._free_slots.append(entry.slot)
        self._device_used -= entry.device_bytes
        entry.slot = None

    # The host.

    def keep_on_host(self, entry: Entry, adapter: PackedAdapter) -> None:
        """It was read."""
        entry.host, entry.device_bytes = adapter, adapter.device_bytes
        self._host_used += adapter.size_bytes
        self._on_host[entry] = None
        self.touch(entry)

    def host_has_room(self) -> bool:
        """Whether what must stay on the host leaves room to read more."""
        if self._host_used < self._config.host_bytes:
            return True
        held = sum(e.host.size_bytes for e in self._on_host if e.host is not None and not self._may_leave_host(e))
        return held < self._config.host_bytes

    def trim_host(self) -> None:
        """Drops host copies, least recently used first, until the rest fits."""
        for entry in tuple(self._on_host) if self._host_used > self._config.host_bytes else ():
            if self._host_used <= self._config.host_bytes:
                return
            if not self._may_leave_host(entry):
                continue
            self.drop_host(entry)
            if not entry.on_device:
                self._evicted(entry.key, Tier.HOST, "lru")
                self.forget_if_gone(entry)

    def drop_host(self, entry: Entry) -> None:
        """Gives up its copy on the host."""
        assert entry.host is not None
        self._host_used -= entry.host.size_bytes
        entry.host = None
        del self._on_host[entry]

    def _may_leave_host(self, entry: Entry) -> bool:
        busy = entry.phase is not Phase.IDLE or (entry.waiters and not entry.on_device)
        return entry.host is not None and not busy and entry.pinned is not Tier.HOST

    # Leaving altogether.

    def drop(self, entry: Entry, reason: str) -> None:
        """Removes an adapter that nobody uses from device and host."""
        entry.drop_when_idle = False
        if entry.host is not None:
            self.drop_host(entry)
            if not entry.on_device:
                self._evicted(entry.key, Tier.HOST, reason)
        if entry.on_device:
            self.leave_device(entry, reason)
        self.forget_if_gone(entry)

    def forget_if_gone(self, entry: Entry) -> None:
        """Forgets an adapter that is nowhere and that nobody asks for."""
        if entry.is_free and not entry.on_device and entry.host is None and entry.failure is None:
            if self._entries.pop(entry.key, None):
                self._left()
            self._pinned.pop(entry, None)

    def _forget_failures(self) -> None:
        old = time.monotonic() - RETRY_SECONDS
        for entry in [e for e in self._failed if e.failed_at < old and e.is_free]:
            self._forget_failure(entry)
            self.forget_if_gone(entry)

    def _forget_failure(self, entry: Entry) -> None:
        entry.failure = None
        self._failed.pop(entry, None)

    def _all(self) -> list[Entry]:
        return list(self._entries.values())

    # Self-check.

    def check_integrity(self, slot_bytes: Callable[[int], int]) -> None:
        """Raises AssertionError unless slots, bytes and references add up."""
        owners = {entry.slot: entry for entry in self._all() if entry.slot is not None}
        placed = [entry for entry in self._all() if entry.slot is not None]
        _require(len(owners) == len(placed) and owners == self._holders, "two adapters share a slot")
        _require({e for e in self._all() if e.pinned is not None} == set(self._pinned), "pins do not add up")
        _require({e for e in self._all() if e.failure is not None} == set(self._failed), "failures do not add up")
        _require({e for e in self._all() if e.host is not None} == set(self._on_host), "the host's do not add up")
        _require(sorted(self._on_host, key=lambda e: e.used) == list(self._on_host), "the host's are not by use")
        _require(
            sorted([*owners, *self._free_slots]) == list(range(self._config.adapter_slots)),
            f"slots in use {sorted(owners)} and free {sorted(self._free_slots)} are not all slots",
        )
        _require(self._device_used == sum(e.device_bytes for e in placed), "device bytes do not add up")
        _require(self._host_used == sum(e.host.size_bytes for e in self._all() if e.host), "host bytes do not add up")
        for entry in self._all():
            _require(entry.references >= 0 and entry.waiters >= 0, f"{entry.key}: negative references")
            _require(entry.on_device or not entry.references, f"{entry.key}: in use, but not on the device")
            _require(entry.phase is not Phase.PLACING or entry.slot is not None, f"{entry.key}: placed nowhere")
            if entry.on_device and entry.slot is not None:
                _require(slot_bytes(entry.slot) == entry.device_bytes, f"{entry.key}: bytes differ from its slot's")
        for slot in self._free_slots:
            _require(slot_bytes(slot) == 0, f"free slot {slot} holds an adapter")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
