"""Killing and failing publishers at every point, and several of them at once."""

import errno
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store_adapters import lora_files, publish
from store_children import check_whole, fork, make_store, stopped_everywhere

from hotshoe.registry.errors import RegistryError, StoreUnavailable
from hotshoe.registry.registry import Registry


def test_every_acknowledged_publication_survives_fifty_kills(root: Path) -> None:
    rng = random.Random(7)
    acknowledged: dict[str, str] = {}
    for generation in range(50):
        child, acks = fork(lambda generation=generation: _publish_forever(root, generation))
        line = acks.readline()  # it is at work
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        for ack in [line, *acks.readlines()]:
            if ack.endswith("\n"):
                tag, digest = ack.split()
                acknowledged[tag] = digest
        acks.close()
        if generation % 5 == 4:  # index.json alone must know what was acknowledged
            for lost in root.glob(".db*"):
                lost.unlink()
        registry = Registry(root)
        for tag, digest in acknowledged.items():
            record = registry.resolve(f"team/a:{tag}")
            assert record.digest == digest
            assert len(registry.adapter_files(digest)) == 3
        check_whole(registry, root)
        registry.close()
    assert len(acknowledged) >= 50
    registry = Registry(root)
    assert registry.fsck().is_clean
    registry.close()


def _publish_forever(root: Path, generation: int) -> Iterator[str]:
    registry = Registry(root)
    for i in range(10_000):
        tag = f"g{generation}-{i}"
        record, _ = publish(registry, "team/a", lora_files(generation * 10_000 + i), tags=[tag, "latest"])
        yield f"{tag} {record.digest}"


@pytest.mark.parametrize("fault", ["kill", "refuse"])
def test_a_publication_stopped_at_any_point_is_whole_or_absent(tmp_path: Path, fault: str) -> None:
    before, points = make_store(tmp_path / "template"), 0

    def work(registry: Registry) -> None:
        publish(registry, "a", lora_files(2), tags=["live", "v2"])

    for root, is_done in stopped_everywhere(tmp_path / "template", fault, work):
        registry = Registry(root)
        live = registry.resolve("a:live")
        if is_done:
            assert live.digest != before.digest
        elif live.digest != before.digest:
            assert set(live.tags) == {"live", "v2"}
        assert registry.resolve(f"a@{before.digest}").digest == before.digest
        check_whole(registry, root)
        again, _ = publish(registry, "a", lora_files(2), tags=["live", "v2"])
        assert registry.resolve("a:live") == again
        check_whole(registry, root)
        registry.close()
        points += 1
    assert points >= 25


def test_after_a_failed_directory_sync_a_store_takes_no_writes_until_it_is_reopened(root: Path) -> None:
    record = make_store(root)
    registry = Registry(root)
    fsync, failing = os.fsync, True

    def fsync_files_only(fd: int) -> None:
        if failing and os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync_files_only)
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            publish(registry, "a", lora_files(2), tags=["live"])
        failing = False
        with pytest.raises(StoreUnavailable, match="takes no writes until the server restarts"):
            publish(registry, "a", lora_files(2), tags=["live"])
        with pytest.raises(StoreUnavailable, match="takes no writes"):
            registry.delete_tag("a", "live")
    assert registry.resolve("a:live") == record and registry.adapter_files(record.digest)
    registry.close()
    reopened = Registry(root)
    publish(reopened, "a", lora_files(2), tags=["live"])
    reopened.close()


def test_a_commit_whose_export_failed_is_exported_by_the_retry(root: Path) -> None:
    make_store(root)
    registry = Registry(root)
    child, lines = fork(lambda: _die_before_export(root))
    lines.close()
    os.waitpid(child, 0)
    exported = (root / "index.json").read_bytes()
    record, created = publish(registry, "a", lora_files(2), tags=["v2"])
    assert not created, "the child had committed it"
    assert record.digest.encode() not in exported
    assert record.digest.encode() in (root / "index.json").read_bytes()
    registry.close()


def test_four_processes_publish_and_move_one_tag_without_losing_any(root: Path) -> None:
    first = make_store(root)
    children = [fork(lambda worker=worker: _work(root, worker)) for worker in range(4)]
    digests = {}
    for child, lines in children:
        for line in lines:
            tag, digest = line.split()
            digests[tag] = digest
        lines.close()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    exported = (root / "index.json").read_bytes()
    registry = Registry(root)
    assert (root / "index.json").read_bytes() == exported, "the last export told the last commit"
    assert len(digests) == 40
    assert all(registry.resolve(f"a:{tag}").digest == digest for tag, digest in digests.items())
    moves = [json.loads(line) for line in (root / "tags.log").read_text().splitlines()]
    chain = [(move["old"], move["new"]) for move in moves if move["tag"] == "live"]
    assert [move["id"] for move in moves] == list(range(1, len(moves) + 1))
    assert chain[0] == (None, first.digest) and len(chain) == 41
    assert all(before[1] == after[0] for before, after in zip(chain, chain[1:], strict=False))
    check_whole(registry, root)
    registry.close()


def _work(root: Path, worker: int) -> Iterator[str]:
    registry = Registry(root)
    for i in range(10):
        tag = f"w{worker}-{i}"
        record, _ = publish(registry, "a", lora_files(100 * worker + i), tags=[tag])
        while True:
            try:
                registry.update_tag("a", "live", record.digest, registry.resolve("a:live").digest)
                break
            except RegistryError:
                continue
        yield f"{tag} {record.digest}"


def _die_before_export(root: Path) -> Iterator[str]:
    registry = Registry(root)
    replace = os.replace

    def die(source: Any, target: Any) -> None:
        if Path(target).name == "index.json":
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    os.replace = die  # type: ignore[assignment]
    yield str(publish(registry, "a", lora_files(2), tags=["v2"]))
