"""Leases in the index and in leases.log: either is made again from the other."""

import json
import os
import sqlite3
import time
from pathlib import Path

import pytest
from store_adapters import lora_files, publish

from hotshoe.registry.errors import AdapterNotFound, StoreUnavailable
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.registry.store import lease_log
from hotshoe.registry.store.index_rows import Lease
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.lease_log import LeaseLog


def with_leases(registry: Registry) -> tuple[list[AdapterRecord], list[Lease]]:
    """Three adapters without tags: leased by a server and a trainer, by the trainer alone, and no more."""
    one, two, three = records = [publish(registry, "a", lora_files(seed))[0] for seed in range(3)]
    registry.lease([one.digest, three.digest], holder="server-1", ttl_seconds=600)
    registry.lease_durably(one.digest, holder="trainer", ttl_seconds=3600)
    registry.lease_durably(two.digest, holder="trainer", ttl_seconds=3600)
    registry.lease([one.digest, two.digest], holder="server-2")
    registry.release_leases("server-1", [three.digest])
    registry.release_leases("server-2")
    assert registry.renew_leases("server-1", ttl_seconds=1200) == 1
    return records, list(registry.leases())


@pytest.mark.parametrize("lost", [[".db"], [".db", "index.json"], ["leases.log"], []])
def test_leases_are_there_whatever_of_index_and_log_is_lost(registry: Registry, root: Path, lost: list[str]) -> None:
    (_, _, unused), leases = with_leases(registry)
    assert [lease.holder for lease in leases] == ["server-1", "trainer", "trainer"]
    registry.close()
    for _ in range(2):
        for name in lost:
            (root / name).unlink()
        again = Registry(root)
        assert again.leases() == leases
        again.close()
    again = Registry(root)
    assert [gone.digest for gone in again.collect_garbage(grace_seconds=0).adapters] == [unused.digest]
    again.close()


def test_a_damaged_index_gets_its_leases_back_while_their_holders_run(registry: Registry, root: Path) -> None:
    (one, two, _), leases = with_leases(registry)
    (root / ".db").unlink()
    with pytest.raises(StoreUnavailable, match="the index was removed while this server ran"):
        registry.lease([one.digest], holder="server-1")
    with pytest.raises(StoreUnavailable, match="the index was removed"):
        registry.leases()
    other = Registry(root)
    assert other.leases() == leases == registry.leases()
    registry.release_leases("trainer")
    registry.lease([two.digest], holder="server-1", ttl_seconds=600)
    assert [lease.digest for lease in other.leases()] == [two.digest, one.digest]
    other.close()
    (root / ".db").unlink()
    other = Registry(root)
    assert other.leases() == registry.leases() and len(other.leases()) == 2
    other.close()


def test_what_a_crash_or_a_person_did_to_the_log_harms_no_other_line(registry: Registry, root: Path) -> None:
    (one, _, _), _ = with_leases(registry)
    log = root / "leases.log"
    with log.open("ab") as file:
        file.write(b'{"digest":"sha256:')
    expected = registry.lease_durably(one.digest, holder="later", ttl_seconds=3600)
    wrong = [b"\0" * 100, b"[]", b"\xff", b"5", b'{"holder":5,"expires":9e9}', b'{"holder":"a"}', b'{"expires":9e9}']
    wrong += [b'{"holder":"a","expires":9e9,"digest":"sha"}', b'{"holder":"a","expires":1e999,"digest":null}', b"{" * 9]
    nobody = {"holder": "a", "expires": time.time() + 3600, "digest": f"sha256:{'0' * 64}"}
    with log.open("ab") as file:
        file.write(b"\n".join([*wrong, json.dumps(nobody).encode(), b""]))
    before = registry.leases()
    registry.close()
    (root / ".db").unlink()
    again = Registry(root)
    assert again.leases() == before and expected in before
    assert LeaseLog(Layout(root)).leases(after=0).keys() == {(lease.holder, lease.digest) for lease in before}
    again.close()


def test_a_log_that_has_grown_or_is_gone_is_written_anew(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, two, _), _ = with_leases(registry)
    log = root / "leases.log"
    log.unlink()
    registry.lease([two.digest], holder="new", ttl_seconds=3600)
    assert len(log.read_text().split()) == len(registry.leases()) == 4
    monkeypatch.setattr(lease_log, "MAX_BYTES", 5000)
    registry.close()
    again = Registry(root)
    sizes = []
    for _ in range(100):
        again.lease([one.digest], holder="busy")
        sizes.append(log.stat().st_size)
    assert max(sizes) < 6000 and sorted(sizes) != sizes
    leases = again.leases()
    again.close()
    (root / ".db").unlink()
    again = Registry(root)
    assert again.leases() == leases and len(leases) == 5
    again.close()


def test_an_index_of_before_the_log_gets_one(registry: Registry, root: Path) -> None:
    _, leases = with_leases(registry)
    registry.close()
    (root / "leases.log").unlink()
    Registry(root).close()
    (root / ".db").unlink()
    again = Registry(root)
    assert again.leases() == leases
    again.close()


def test_what_expired_does_not_come_back(registry: Registry, root: Path) -> None:
    (one, _, _), leases = with_leases(registry)
    registry.lease_durably(one.digest, holder="short", ttl_seconds=0.01)
    registry.close()
    time.sleep(0.02)
    (root / ".db").unlink()
    again = Registry(root)
    assert again.leases() == leases
    with sqlite3.connect(root / ".db") as connection:
        assert connection.execute("SELECT count(*) FROM leases").fetchone() == (3,)
    connection.close()
    again.close()


def test_a_lease_that_a_full_disk_refuses_is_none(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one, _, _), leases = with_leases(registry)
    write, size = os.write, (root / "leases.log").stat().st_size

    def full(fd: int, data: bytes) -> int:
        if len(data) > 10:
            return write(fd, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for take in (registry.lease_durably, lambda digest, holder: registry.lease([digest], holder=holder)):
        with pytest.raises(StoreUnavailable, match="No space left"):
            take(one.digest, holder="x")
    monkeypatch.undo()
    assert registry.leases() == leases and (root / "leases.log").stat().st_size in (size, size + 1)
    with pytest.raises(AdapterNotFound):
        registry.lease_durably(f"sha256:{'0' * 64}", holder="x")
