"""Adapters whose bytes are damaged, loaded from a remote that stands still, while others are loaded."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from residency_house import WAIT, House, run_threads, until

from hotshoe.registry.errors import RemoteUnavailable
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.server.adapters import residency_state
from hotshoe.server.adapters.resident import Tier
from hotshoe.server.errors import AdapterUnusable


class StalledSource:
    """A remote that has every blob, and gives none until it may."""

    def __init__(self, house: House, blobs: dict[str, bytes]) -> None:
        self._house = house
        self._blobs = blobs
        self.fetches: list[str] = []
        self.asked = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.failure: Exception | None = None

    def fetch(self, blob: FileDescriptor, names: Sequence[str]) -> bool:
        self.fetches.append(blob.digest)
        self.asked.release()
        assert self.may_go_on.wait(WAIT)
        if self.failure:
            raise self.failure
        data = self._blobs.get(blob.digest)
        if data is None:
            return False
        with self._house.registry.open_upload(blob) as upload:
            upload.write(0, data)
            upload.finish()
        return True

    def note(self, digest: str, *, healed: bool) -> None:
        pass


def damage(house: House, digest: str) -> dict[str, bytes]:
    """Spoils all but the manifest of an adapter; its blobs as they were, by digest."""
    blobs = {}
    for file in house.registry.adapter_record(digest).files:
        path = house.registry.adapter_files(digest)[file.file_name]
        blobs[file.digest] = path.read_bytes()
    for path in [Path(found) for found in house.registry.adapter_files(digest).values()]:
        if path.read_bytes().startswith(b"{"):
            continue  # of the other adapters, too
        path.chmod(0o644)
        path.write_bytes(b"damaged")
    return blobs


def stall(house: House, *digests: str) -> StalledSource:
    source = StalledSource(house, {key: data for digest in digests for key, data in damage(house, digest).items()})
    house.registry.heal_from(source)
    return source


def test_loads_of_others_go_on_while_a_remote_stands_still(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=4, loader_threads=1)
    hurt, second, *whole = house.digests
    source = stall(house, hurt, second)
    waiting = [
        threading.Thread(target=house.residency.load, args=(hurt,), kwargs={"tier": Tier.HOST}) for _ in range(8)
    ]
    for thread in waiting:
        thread.start()
    house.residency.prefetch(second)
    assert source.asked.acquire(timeout=WAIT) and source.asked.acquire(timeout=WAIT)
    for digest in whole:
        house.residency.load(digest, tier=Tier.HOST)
    house.acquire(whole[0])
    house.residency.release([whole[0]])
    house.residency.check_integrity()
    assert house.residency.acquire([hurt]) is None and all(thread.is_alive() for thread in waiting)
    source.may_go_on.set()
    for thread in waiting:
        thread.join(WAIT)
    house.acquire(hurt)
    house.residency.release([hurt])
    until(lambda: second in {resident.key for resident in house.residency.residents()})
    assert len(source.fetches) == len(set(source.fetches)) == 2 and house.heard().failures == []


@pytest.mark.parametrize("failure", [RemoteUnavailable("oci://x", "it is down"), None])
def test_what_cannot_be_healed_fails_all_who_wait_and_may_be_tried_again(
    new_house: Callable[..., House], failure: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_state, "RETRY_SECONDS", 1000.0)
    house = new_house(loader_threads=1)
    hurt = house.digests[0]
    source = stall(house, hurt)
    blobs, source._blobs, source.failure = source._blobs, {}, failure
    source.may_go_on.set()

    def ask() -> None:
        with pytest.raises(AdapterUnusable, match="it is down" if failure else "its .* stored bytes have digest"):
            house.acquire(hurt)

    run_threads([ask] * 4)
    until(lambda: bool(house.observer.failures))  # it is told after those who wait
    assert len(source.fetches) == 1 and [failed for failed, _ in house.observer.failures] == [hurt]
    source._blobs, source.failure = blobs, None
    monkeypatch.setattr(residency_state, "RETRY_SECONDS", 0.0)
    house.acquire(hurt)
    house.residency.release([hurt])


def test_what_is_being_healed_may_be_given_up(new_house: Callable[..., House]) -> None:
    house = new_house(loader_threads=1)
    hurt, other, _ = house.digests
    source = stall(house, hurt)
    house.residency.prefetch(hurt)
    assert source.asked.acquire(timeout=WAIT)
    with pytest.raises(AdapterUnusable, match="not loaded in time"):
        house.residency.load(hurt, timeout_seconds=0.01)
    house.residency.unload(hurt)
    house.acquire(other)
    house.residency.release([other])
    house.residency.check_integrity()
    source.may_go_on.set()
    until(lambda: house.residency._state.find(hurt) is None)  # read, and dropped, as it was told
