"""What is in memory is leased, so that the registry keeps it; what has left is not."""

import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import pytest
from residency_house import House, leased, until

from hotshoe.registry.errors import AdapterNotFound, StoreUnavailable
from hotshoe.server.adapters.adapter_leases import AdapterLeases
from hotshoe.server.adapters.resident import Tier
from hotshoe.server.errors import AdapterUnusable


def test_what_is_on_host_or_device_is_not_collected(new_house: Callable[..., House], tmp_path: Path) -> None:
    house = new_house(adapters=4)
    on_device, on_host, unloaded, cold = house.digests
    house.acquire(on_device)
    house.residency.load(on_host, tier=Tier.HOST)
    house.residency.load(unloaded)
    house.residency.unload(unloaded)
    house.residency.release([on_device])
    [root] = [path.parent for path in tmp_path.rglob("oci-layout")]
    until(lambda: leased(root) == {on_device, on_host})
    assert {gone.digest for gone in house.registry.collect_garbage(grace_seconds=0).adapters} == {unloaded, cold}
    for digest in (on_device, on_host):
        assert house.registry.adapter_files(digest)
    for digest in (unloaded, cold):
        with pytest.raises(AdapterUnusable) as caught:
            house.residency.load(digest)
        assert isinstance(caught.value.__cause__, AdapterNotFound)
    house.residency.close()
    assert leased(root) == set()
    assert len(house.registry.collect_garbage(grace_seconds=0).adapters) == 2


def test_what_lies_in_the_weights_is_not_collected(new_house: Callable[..., House], tmp_path: Path) -> None:
    house = new_house(adapters=3)
    merged, loaded, cold = house.digests
    house.residency.keep_merged(merged)
    house.residency.load(loaded)
    house.residency.unload(loaded)
    [root] = [path.parent for path in tmp_path.rglob("oci-layout")]
    until(lambda: leased(root) == {merged})
    assert {gone.digest for gone in house.registry.collect_garbage(grace_seconds=0).adapters} == {loaded, cold}


class Store:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.leased: list[list[str]] = []
        self.released: list[Sequence[str] | None] = []
        self.error: Exception | None = None
        self.told = threading.Event()

    def lease(self, digests: Sequence[str], *, holder: str, ttl_seconds: float) -> None:
        assert holder.startswith("server-") and ttl_seconds == 3600
        self.leased.append(list(digests))
        self.told.set()
        if self.error is not None:
            raise self.error

    def release_leases(self, holder: str, digests: Sequence[str] | None = None) -> None:
        self.released.append(digests)
        if self.error is not None:
            raise self.error


def test_leases_are_taken_once_renewed_and_ended(caplog: pytest.LogCaptureFixture) -> None:
    held: Collection[str] = {"a", "b"}
    store = Store()
    leases = AdapterLeases(store, lambda: held)
    for digest in ("a", "b", "a"):
        leases.take(digest)
    assert store.leased == [["a"], ["b"]]
    leases.close()
    assert store.released == [None]
    leases = AdapterLeases(store, lambda: held, renew_seconds=0.05, settle_seconds=0.01)
    for digest in ("a", "b"):
        leases.take(digest)
    taken = len(store.leased)
    until(lambda: {digest for [digest] in store.leased[taken:]} == {"a", "b"})
    held = {"b", "c"}
    leases.note_departure()
    until(lambda: store.released == [None, ["a"]])
    store.error = StoreUnavailable("disk full")
    leases.take("c")  # and does not raise: reading needs no disk that takes writes
    store.error = AdapterNotFound("gone")
    with pytest.raises(AdapterNotFound):
        leases.take("d")
    until(lambda: "not in the registry any more" in caplog.text)
    store.error = None
    leases.close()
    assert store.released[-1] is None
