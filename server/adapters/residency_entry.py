"""What is known of one adapter that somebody asked for. Changed under its owner's lock."""

import enum
import math
from dataclasses import dataclass, field

from hotshoe.registry.errors import BlobCorrupt
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.server.adapters.packed_adapter import PackedAdapter
from hotshoe.server.adapters.resident import LoadProgress, LoadStage, ResidentInfo, Tier


class Phase(enum.Enum):
    """What the loaders have to do, or do, with an adapter."""

    IDLE = "idle"
    QUEUED = "queued"  # to be read
    READING = "reading"
    HEALING = "healing"  # until it can be read: what of it is damaged is fetched again, by others
    AWAITING_SLOT = "awaiting slot"  # on the host
    PLACING = "placing"  # has a slot, is being copied to it


@dataclass(slots=True, eq=False)
class Entry:
    """One adapter that somebody asked for."""

    key: str  # as `adapter_key` has it
    phase: Phase = Phase.IDLE
    record: AdapterRecord | None = None
    host: PackedAdapter | None = None
    slot: int | None = None  # given while PLACING, in use after
    device_bytes: int = 0  # what it takes there, known since it was read
    references: int = 0
    waiters: int = 0  # threads in load()
    pinned: Tier | None = None
    target: Tier = Tier.DEVICE  # of the load under way
    prefetched: bool = False  # the load under way may end on the device, though its target is the host
    missed: bool = False
    healed: dict[str, BlobCorrupt] = field(default_factory=dict)  # what was fetched again for the load under way
    loader: int | None = None  # the thread that works on it, as long as it runs only where a core is idle
    drop_when_idle: bool = False
    stage: LoadStage = LoadStage.RESOLVING
    failure: Exception | None = None
    failed_at: float = -math.inf
    read_seconds: dict[str, float] = field(default_factory=dict)  # by stage, until it is placed
    load_seconds: float = 0.0
    load_started: float = 0.0
    used: int = 0  # larger is later
    last_use: float = 0.0

    @property
    def on_device(self) -> bool:
        return self.slot is not None and self.phase is not Phase.PLACING

    @property
    def is_free(self) -> bool:
        """Nobody uses it, waits for it in load(), or works on it."""
        return not (self.references or self.waiters or self.phase is not Phase.IDLE)

    @property
    def is_held(self) -> bool:
        """It is in memory, or on its way there."""
        return self.on_device or self.host is not None or self.phase is not Phase.IDLE

    @property
    def holds_slot(self) -> bool:
        """Pinned where it is on the device, or pinned to the host and without a copy there."""
        return self.pinned is not None and self.slot is not None and (self.pinned is Tier.DEVICE or self.host is None)

    def has_reached(self, tier: Tier) -> bool:
        return self.on_device or (tier is Tier.HOST and self.host is not None)

    @property
    def total_bytes(self) -> int:
        return 0 if self.record is None else self.record.size_bytes

    def progress(self, *, ready: bool = False) -> LoadProgress:
        """How far its load is; `ready`: it has reached the tier that was asked for."""
        if ready:
            return LoadProgress(LoadStage.READY, self.total_bytes, self.total_bytes, self.info())
        done = self.total_bytes if self.stage is LoadStage.LOADING else 0
        return LoadProgress(self.stage, done, self.total_bytes)

    def info(self) -> ResidentInfo:
        """Of one that is in memory: what there is to tell of it."""
        assert self.record is not None, "known since it was read"
        assert self.on_device or self.host is not None, "residents are somewhere"
        return ResidentInfo(
            key=self.key,
            name=self.record.name,
            kind=self.record.kind,
            tier=Tier.DEVICE if self.on_device else Tier.HOST,
            pinned=self.pinned is not None,
            running=self.references,
            size_bytes=self.device_bytes if self.on_device or self.host is None else self.host.size_bytes,
            last_use=self.last_use,
        )
