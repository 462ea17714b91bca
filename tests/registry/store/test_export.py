"""A large index.json is exported later; until then nothing is lost, whatever else is."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_adapters import lora_files, publish
from store_children import check_whole, fork

from hotshoe.registry.registry import Registry
from hotshoe.registry.store import export
from hotshoe.registry.store.index_json import read_log_id


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every index.json is large, and no thread's turn comes before the store is closed."""
    monkeypatch.setattr(export, "SMALL_ENTRIES", 0)
    monkeypatch.setattr(export, "DELAY_SECONDS", 3600.0)


def exported(root: Path) -> dict[str, str]:
    """Digest by name:tag."""
    descriptors = json.loads((root / "index.json").read_bytes())["manifests"]
    names = [(one["annotations"].get("org.opencontainers.image.ref.name"), one["digest"]) for one in descriptors]
    return {name: digest for name, digest in names if name}


def _work(root: Path) -> Iterator[str]:
    """Changes of every sort that index.json hears nothing of, and then a kill."""
    registry = Registry(root)
    records = [publish(registry, "a", lora_files(seed), tags=["live", f"v{seed}"])[0] for seed in range(4)]
    publish(registry, "b", lora_files(0), tags=["live"])
    registry.delete_tag("a", "v2")
    registry.roll_back_tag("a", "live")
    for number in (1, 2, 1):  # the first becomes the latest
        document = b"%d" % number
        registry.attach(records[3].digest, document, artifact_type="text/x", file_name="x", annotations={})
    yield json.dumps(_told(registry))
    os.kill(os.getpid(), signal.SIGKILL)


def _told(registry: Registry) -> list[object]:
    page, _ = registry.list(page_size=1000)
    return [[r.name, r.digest, list(r.tags), [f.digest for f in registry.referrers(r.digest)]] for r in page]


@pytest.mark.parametrize("lost", [[], [".db"], ["index.json"], [".db", "index.json"], ["tags.log"]])
def test_what_was_acknowledged_is_there_whatever_is_lost(root: Path, late: None, lost: list[str]) -> None:
    registry = Registry(root)
    publish(registry, "before", lora_files(9), tags=["v1"])
    registry.close()
    before = exported(root)
    child, lines = fork(lambda: _work(root))
    told = json.loads(lines.readline())
    lines.close()
    os.waitpid(child, 0)
    assert exported(root) == before and len(told) == 6
    for name in lost:
        for path in root.glob(f"{name}*"):
            path.unlink()
    registry = Registry(root)
    assert _told(registry) == told
    check_whole(registry, root)
    assert registry.fsck().is_clean
    publish(registry, "after", lora_files(10), tags=["v1"])
    registry.close()
    assert len(exported(root)) == len(before) + 6
    for path in root.glob(".db*"):
        path.unlink()
    registry = Registry(root)
    assert _told(registry)[1:] == told
    registry.close()


def test_the_collector_exports_before_it_sweeps(root: Path, late: None) -> None:
    registry = Registry(root)
    publish(registry, "a", lora_files(1), tags=["live"])
    kept, _ = publish(registry, "a", lora_files(2), tags=["live"])
    assert exported(root) == {}
    registry.collect_garbage(grace_seconds=0)
    assert exported(root) == {"a:live": kept.digest}
    registry.close()


def test_many_commits_are_one_export_and_soon(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SMALL_ENTRIES", 0)
    monkeypatch.setattr(export, "DELAY_SECONDS", 0.2)
    registry = Registry(root)
    seen, began = {read_log_id((root / "index.json").read_bytes())}, time.monotonic()
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0.005):
            seen.add(read_log_id((root / "index.json").read_bytes()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    records = [publish(registry, "a", lora_files(seed), tags=["live"])[0] for seed in range(20)]
    deadline = time.monotonic() + 100
    while exported(root) != {"a:live": records[-1].digest}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    watching.set()
    watcher.join()
    seen.add(read_log_id((root / "index.json").read_bytes()))  # the last, if it came between two looks
    assert 2 <= len(seen) <= 3 + (time.monotonic() - began) / 0.2
    registry.close()
    assert list((root / ".tmp").iterdir()) == []


def test_an_older_export_does_not_replace_a_newer_one(root: Path, late: None) -> None:
    first, second = Registry(root), Registry(root)
    publish(first, "a", lora_files(1), tags=["live"])
    record, _ = publish(second, "a", lora_files(2), tags=["live"])
    second.close()
    assert exported(root) == {"a:live": record.digest}
    newest = (root / "index.json").read_bytes()
    first.close()
    assert (root / "index.json").read_bytes() == newest


def test_an_index_json_without_an_id_is_taken_as_it_is(root: Path) -> None:
    registry = Registry(root)
    publish(registry, "a", lora_files(1), tags=["live"])
    record, _ = publish(registry, "a", lora_files(2), tags=["live"])
    registry.close()
    index = json.loads((root / "index.json").read_bytes())
    del index["annotations"]
    (root / "index.json").write_text(json.dumps(index))
    (root / ".db").unlink()
    registry = Registry(root)
    assert registry.resolve("a:live") == record and len(registry.list()[0]) == 2
    registry.close()


def test_a_disk_that_refuses_the_later_export_is_asked_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "SMALL_ENTRIES", 0)
    monkeypatch.setattr(export, "DELAY_SECONDS", 0.05)
    monkeypatch.setattr(export, "_RETRY_SECONDS", 0.05)
    registry = Registry(root)
    replace, refusals = os.replace, []

    def refuse_at_first(*paths: str) -> None:
        if len(refusals) < 3:
            refusals.append(paths)
            raise OSError(28, "No space left on device")
        replace(*paths)

    monkeypatch.setattr(os, "replace", refuse_at_first)
    record, _ = publish(registry, "a", lora_files(1), tags=["live"])
    deadline = time.monotonic() + 100
    while exported(root) != {"a:live": record.digest}:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(refusals) == 3
    registry.close()
    assert list((root / ".tmp").iterdir()) == []
