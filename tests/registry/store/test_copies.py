"""Copies of a store's directory, and old files put back into it: what is opened then is whole, or says what is not."""

import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_adapters import lora_files, publish
from store_children import check_whole

from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry


@pytest.fixture
def busy(registry: Registry) -> Iterator[list[AdapterRecord]]:
    """What has been published and acknowledged so far, while more is."""
    acknowledged: list[AdapterRecord] = []
    ended = threading.Event()

    def work() -> None:
        seed = 0
        while not ended.is_set():
            seed += 1
            record, _ = publish(registry, f"n{seed % 7}", lora_files(seed), tags=[f"v{seed}", "live"])
            registry.lease_durably(record.digest, holder=f"h{seed}")
            acknowledged.append(record)

    thread = threading.Thread(target=work)
    thread.start()
    yield acknowledged
    ended.set()
    thread.join()


def test_a_copy_of_a_store_in_use_has_all_that_was_acknowledged_before(
    busy: list[AdapterRecord], root: Path, tmp_path: Path
) -> None:
    for number in range(2):
        while len(busy) < 5 * number + 5:
            time.sleep(0.01)
        before, copy = list(busy), tmp_path / f"copy-{number}"
        _copy(root, copy)
        copied = Registry(copy)
        try:
            leased = {lease.digest for lease in copied.leases()}
            for record in before:
                assert copied.resolve(f"{record.name}@{record.digest}").digest == record.digest
                assert len(copied.adapter_files(record.digest)) == 3 and record.digest in leased
            report = copied.fsck()  # of what came meanwhile some is missing, and it says of what
            later = {file.digest for record in busy[len(before) :] for file in record.files}
            later |= {record.digest for record in busy[len(before) :]}
            assert not report.corrupt and not {*report.missing} & {file.digest for r in before for file in r.files}
            assert publish(copied, "after", lora_files(10_000), tags=["v1"])[1]
        finally:
            copied.close()


def _copy(root: Path, copy: Path) -> None:
    """Once more where cp says that it left a file out, which a commit replaced between its look and its opening it."""
    while True:
        ran = subprocess.run(
            ["cp", "-a", str(root), str(copy)], capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}
        )
        complaints = [line for line in ran.stderr.splitlines() if "No such file" not in line]
        if not complaints:  # what was staged is gone before it is copied
            return
        assert all("replaced while being copied" in line for line in complaints), complaints
        shutil.rmtree(copy)


def test_an_index_that_was_copied_or_put_back_is_made_again(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    registry = Registry(root)
    publish(registry, "a", lora_files(1), tags=["live"])
    registry.close()
    shutil.copy2(root / ".db", tmp_path / "old")
    registry = Registry(root)
    two, _ = publish(registry, "a", lora_files(2), tags=["live"])
    lease = registry.lease_durably(two.digest, holder="x")
    registry.close()
    assert "rebuilt" not in caplog.text
    shutil.copytree(root, tmp_path / "copy")
    shutil.copyfile(tmp_path / "old", root / ".db")
    for place, why in ((tmp_path / "copy", "was copied here"), (root, "is older than tags.log")):
        for _ in range(2):
            caplog.clear()
            opened = Registry(place)
            assert opened.resolve("a:live") == two and opened.leases() == [lease]
            check_whole(opened, place)
            opened.close()
            assert why in caplog.text
            why = ""
        assert "rebuilt" not in caplog.text, "once"


@pytest.mark.parametrize("lost", ["tags.log", "leases.log", "index.json"])
def test_a_copied_index_is_kept_where_nothing_better_came_with_it(root: Path, tmp_path: Path, lost: str) -> None:
    registry = Registry(root)
    record, _ = publish(registry, "a", lora_files(1), tags=["live"])
    lease = registry.lease_durably(record.digest, holder="x")
    registry.close()
    shutil.copytree(root, tmp_path / "copy", ignore=shutil.ignore_patterns(lost))
    copied = Registry(tmp_path / "copy")
    assert copied.resolve("a:live") == record and copied.leases() == [lease]
    assert list((tmp_path / "copy" / ".quarantine").iterdir()) == []
    copied.close()
