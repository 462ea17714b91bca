"""The turnstile: publishers share, a collector excludes them and does not starve."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from store_adapters import descriptor, lora_files, publish, small_base, upload
from store_children import fork

from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.registry import Registry
from hotshoe.registry.store import machine
from hotshoe.registry.store.locks import StoreLocks


def test_publishers_hold_the_store_together(tmp_path: Path) -> None:
    locks, together = StoreLocks(tmp_path), threading.Barrier(4, timeout=60)

    def publish() -> None:
        with locks.publishing():
            together.wait()

    _run_all([publish] * 4)
    assert not together.broken


def test_a_collector_and_publishers_exclude_each_other(tmp_path: Path) -> None:
    locks, inside, seen = StoreLocks(tmp_path), [], []

    def publish() -> None:
        for _ in range(20):
            with locks.publishing():
                seen.append("collector" in inside)
                time.sleep(0.001)

    def collect() -> None:
        for _ in range(20):
            with locks.collecting():
                inside.append("collector")
                time.sleep(0.001)
                inside.remove("collector")

    _run_all([publish, publish, collect, collect])
    assert len(seen) == 40 and not any(seen)


def test_a_collector_gets_its_turn_while_publishers_never_let_go(tmp_path: Path) -> None:
    locks, collected, give_up = StoreLocks(tmp_path), threading.Event(), time.monotonic() + 60

    def publish(offset: float) -> None:
        time.sleep(offset)
        while not collected.is_set() and time.monotonic() < give_up:
            with locks.publishing():  # always overlapping with another's: without the gate .gc is never free
                time.sleep(0.03)

    def collect() -> None:
        time.sleep(0.05)
        with locks.collecting():
            collected.set()

    _run_all([*(lambda i=i: publish(0.01 * i) for i in range(3)), collect])
    assert time.monotonic() < give_up


def test_committers_come_one_at_a_time(tmp_path: Path) -> None:
    locks, count = StoreLocks(tmp_path), [0]

    def commit() -> None:
        for _ in range(20):
            with locks.committing():
                before = count[0]
                time.sleep(0.0005)
                count[0] = before + 1

    _run_all([commit] * 4)
    assert count == [80]


@pytest.mark.parametrize("lock", ["committing", "collecting"])
def test_whatever_changes_the_store_waits_for_its_locks(registry: Registry, root: Path, lock: str) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["old"])
    second = upload(registry, lora_files(2))
    session = registry.open_upload(descriptor(b"x"))
    session.write(0, b"x")
    changes = [
        lambda: registry.publish(name="a", tags=["v1"], files=second, annotations={}, base=small_base()),
        lambda: registry.update_tag("a", "v2", record.digest, ""),
        lambda: registry.delete_tag("a", "old"),
        *([session.finish] if lock == "collecting" else []),
    ]
    before, done = (root / "index.json").read_bytes(), []
    threads = [threading.Thread(target=lambda change=change: done.append(change())) for change in changes]
    with getattr(StoreLocks(root), lock)():
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert done == [] and (root / "index.json").read_bytes() == before
        assert registry.resolve("a:old") == record, "reading waits for nobody"
    for thread in threads:
        thread.join(timeout=120)
    assert len(done) == len(changes)
    assert registry.resolve("a:v1").digest != record.digest
    assert registry.resolve(f"a@{record.digest}").tags == ("v2",)


def _run_all(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)


def test_a_store_is_open_on_one_machine_at_a_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_TRIES", 3)
    monkeypatch.setattr(machine, "machine", lambda: "boot-1 east")
    first, second = Registry(root), Registry(root)
    first.close()
    monkeypatch.setattr(machine, "machine", lambda: "boot-2 west")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="the machine 'east' has it open; a registry's directory is for"):
            Registry(root)
    second.close()
    third = Registry(root)
    monkeypatch.setattr(machine, "machine", lambda: "boot-1 east")
    with pytest.raises(StoreUnavailable, match="the machine 'west' has it open"):
        Registry(root)
    third.close()
    (root / ".machine").write_bytes(b"")  # as a full disk leaves it
    fourth = Registry(root)
    fourth.close()


def test_processes_that_open_a_store_together_after_a_restart_all_may(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_TRIES", 10_000)  # one that sleeps while it looks holds up the others
    Registry(root).close()
    (root / ".machine").write_text("an-earlier-boot east")
    children = [fork(lambda: _open(root)) for _ in range(6)]
    for child, lines in children:
        assert lines.read() == "opened\n"
        lines.close()
        os.waitpid(child, 0)


def _open(root: Path) -> Iterator[str]:
    registry = Registry(root)
    yield "opened"
    registry.close()
