"""A registry with adapters in it, slots, and residency over both: for tests that need all three."""

import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import canonical_adapters as canonical
from adapter_files import lora_bytes
from store_adapters import publish
from torch import Tensor

from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.adapters.resident import AdapterSource, Tier
from hotshoe.server.config import ResidencyConfig

WAIT = 60.0  # seconds, for what takes milliseconds


class Weights:
    """A base without biases, of which no lowering here reads a weight."""

    def __init__(self, shape: BaseShape) -> None:
        self.shape = shape

    def bias(self, linear: LinearId) -> Tensor | None:
        return None

    def weight(self, linear: LinearId) -> Tensor:
        raise AssertionError("no lowering here reads a weight")


@dataclass
class Observer:
    """Counts what it is told."""

    loads: list[tuple[str, str]] = field(default_factory=list)
    stages: list[set[str]] = field(default_factory=list)
    failures: list[tuple[str, Exception]] = field(default_factory=list)
    evictions: list[tuple[str, str, str]] = field(default_factory=list)
    lookups: list[bool] = field(default_factory=list)

    def loaded(self, digest: str, source: str, seconds_by_stage: Mapping[str, float]) -> None:
        assert all(seconds >= 0 for seconds in seconds_by_stage.values())
        self.loads.append((digest, source))
        self.stages.append(set(seconds_by_stage))

    def load_failed(self, digest: str, error: Exception) -> None:
        self.failures.append((digest, error))

    def evicted(self, digest: str, tier: str, reason: str) -> None:
        self.evictions.append((digest, tier, reason))

    def lookup(self, hit: bool) -> None:
        self.lookups.append(hit)


class Shelf:
    """A source of thousands of adapters, which are the files of one: digests and entries count here, not bytes."""

    def __init__(self, registry: Registry, digest: str) -> None:
        self._registry = registry
        self._digest = digest

    def adapter_record(self, digest: str) -> AdapterRecord:
        return replace(self._registry.adapter_record(self._digest), digest=digest)

    def adapter_files(self, digest: str) -> dict[str, Path]:
        return self._registry.adapter_files(self._digest)


class House:
    """A registry with adapters in it, slots, and residency over both."""

    def __init__(self, root: Path, *, adapters: int = 3, rank: int = 4, **config: int | bool) -> None:
        self.base = canonical.small_shape()
        self.registry = Registry(root)
        self.registry_source: AdapterSource = self.registry  # what residency reads from
        self.digests = [
            publish(self.registry, f"adapter-{i}", lora_bytes(self.base, seed=i, rank=rank), base=self.base)[0].digest
            for i in range(adapters)
        ]
        self.config = ResidencyConfig(**{"adapter_slots": 2, **config})  # type: ignore[arg-type]
        self.slots = AdapterSlots(self.config.adapter_slots, self.base)
        self.observer = Observer()
        self.changed = threading.Event()
        self.residency = self.new_residency()

    def new_residency(self, base: BaseShape | None = None) -> AdapterResidency:
        residency = AdapterResidency(
            registry=self.registry_source,
            base=Weights(base or self.base),
            slots=self.slots,
            config=self.config,
            observer=self.observer,
            leases=self.registry if self.registry_source is self.registry else None,
        )
        residency.on_change = self.changed.set
        return residency

    def fill_shelf(self, count: int) -> None:
        """Has so many adapters from now on, all of them the first."""
        self.registry_source = Shelf(self.registry, self.digests[0])
        self.digests = [f"sha256:{number:064x}" for number in range(count)]
        self.residency.close()
        self.residency = self.new_residency()

    def acquire(self, *digests: str) -> tuple[int, ...]:
        """As the engine does: again after every change, until the stack is there."""
        deadline = time.monotonic() + WAIT
        while (slots := self.residency.acquire(digests)) is None:
            assert time.monotonic() < deadline, "no progress"
            self.changed.wait(0.02)
            self.changed.clear()
        return slots

    def heard(self) -> Observer:
        """The observer, once it was told all: loaders tell it after who waits for them may have gone on. Ends them."""
        self.residency.close()
        return self.observer

    def close(self) -> None:
        self.residency.check_integrity()
        self.residency.close()
        self.registry.close()


def until(condition: Callable[[], bool], *, seconds: float = WAIT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def leased(root: Path) -> set[str]:
    """The digests that the registry of that directory has leased out."""
    with sqlite3.connect(root / ".db") as connection:
        return {row[0] for row in connection.execute("SELECT digest FROM leases")}


def tiers(house: House) -> dict[str, Tier]:
    return {resident.digest: resident.tier for resident in house.residency.residents()}


def run_threads(targets: Sequence[Callable[[], object]]) -> None:
    """Runs all at once, and raises what one of them raised."""
    errors: list[BaseException] = []

    def guarded(target: Callable[[], object]) -> None:
        try:
            target()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(target,)) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * WAIT)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
