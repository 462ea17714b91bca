"""What residency says about an adapter, and to whom."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from hotshoe.registry.manifest import AdapterRecord
from hotshoe.server.adapters.adapter_key import digest_of, task_of


class Tier(enum.StrEnum):
    """Where an adapter lies; each is faster than the one before."""

    DISK = "disk"
    HOST = "host"
    DEVICE = "device"


class LoadStage(enum.StrEnum):
    """What a load is doing."""

    RESOLVING = "resolving"
    VERIFYING = "verifying"
    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class ResidentInfo:
    """An adapter in memory."""

    key: str  # as `adapter_key` has it
    name: str
    kind: str  # PEFT's peft_type
    tier: Tier  # the fastest that it is in
    pinned: bool
    running: int  # references that requests hold
    size_bytes: int  # in that tier
    last_use: float  # time.time() seconds

    @property
    def digest(self) -> str:
        """Of its manifest."""
        return digest_of(self.key)

    @property
    def task(self) -> int | None:
        """Which of its tasks it is; None if it has none."""
        return task_of(self.key)


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load has come; `adapter` comes with READY."""

    stage: LoadStage
    completed_bytes: int  # of the adapter's files, read and verified
    total_bytes: int  # 0 until it is known
    adapter: ResidentInfo | None = None


class Unloaded(NamedTuple):
    """What an unload came upon."""

    found: bool  # in memory, on its way there, or in quarantine
    in_use: bool  # dropped once it is not


class AdapterSource(Protocol):
    """Where adapters come from, as far as residency reads it: the registry."""

    def adapter_record(self, digest: str) -> AdapterRecord: ...
    def adapter_files(self, digest: str) -> dict[str, Path]: ...


class ResidencyObserver(Protocol):
    """Told what happens, by the thread that did it and after its locks are released. Must be quick."""

    def loaded(self, key: str, source: str, seconds_by_stage: Mapping[str, float]) -> None: ...
    def load_failed(self, key: str, error: Exception) -> None: ...
    def evicted(self, key: str, tier: str, reason: str) -> None: ...
    def lookup(self, hit: bool) -> None: ...
