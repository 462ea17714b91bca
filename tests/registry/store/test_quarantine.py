"""What is damaged: how long it is kept, and when it goes."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from store_adapters import WEIGHTS, lora_files, publish
from store_children import faults, fork, overwrite

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import BlobCorrupt, StoreUnavailable
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.registry.store.garbage import Garbage
from hotshoe.registry.store.quarantine import DamagedFile

DAY = 24 * 3600.0


def weights_of(record: AdapterRecord) -> str:
    return next(file.digest for file in record.files if file.file_name == WEIGHTS)


def damage(registry: Registry, root: Path, record: AdapterRecord) -> bytes:
    """One byte of an adapter's weights becomes another, and a reader finds it; what is in quarantine then."""
    path = root / "blobs" / "sha256" / digest_hex(weights_of(record))
    damaged = path.read_bytes()[:-1] + b"?"
    overwrite(path, damaged)
    with pytest.raises(BlobCorrupt):
        registry.adapter_files(record.digest)
    return damaged


def age(root: Path) -> None:
    """All that is in quarantine came there two days earlier."""
    for path in (root / ".quarantine").iterdir():
        status = path.lstat()
        times = (status.st_atime - 2 * DAY, status.st_mtime - 2 * DAY)
        os.utime(path, times, follow_symlinks=False)


def kept(root: Path) -> list[bytes]:
    """What is there of blobs."""
    files = [path for path in (root / ".quarantine").iterdir() if not path.name.startswith("index")]
    return sorted(path.read_bytes() for path in files)


def test_damaged_bytes_go_after_the_grace_if_sound_ones_have_come(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    damaged = damage(registry, root, record)
    publish(registry, "a", lora_files(1), tags=["v1"])
    report = registry.collect_garbage()
    assert (report.discarded_files, kept(root)) == (0, [damaged]), "it came just now"
    age(root)
    told = registry.collect_garbage(dry_run=True)
    assert (told.discarded_files, told.discarded_bytes, kept(root)) == (1, len(damaged), [damaged])
    assert registry.collect_garbage() == told and kept(root) == []
    assert registry.adapter_files(record.digest)[WEIGHTS].read_bytes() == lora_files(1)[WEIGHTS]


def test_the_only_copy_stays_and_goes_with_what_names_it(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    damaged = damage(registry, root, record)
    age(root)
    for dry_run in (True, False, False):
        assert registry.collect_garbage(grace_seconds=0, dry_run=dry_run).discarded_files == 0
    assert kept(root) == [damaged]
    report = registry.fsck()
    assert report.only_damaged == report.missing == (weights_of(record),)
    assert [file.size_bytes for file in report.quarantine] == [len(damaged)]
    registry.delete_tag("a", "v1")
    assert len(registry.collect_garbage(grace_seconds=0).adapters) == 1 and kept(root) == [damaged]
    assert registry.collect_garbage(grace_seconds=0).discarded_files == 1 and kept(root) == []
    assert registry.fsck().quarantine == ()


def test_what_has_taken_its_place_is_read_again_before_it_goes(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    damaged = damage(registry, root, record)
    publish(registry, "a", lora_files(1), tags=["v1"])
    path = root / "blobs" / "sha256" / digest_hex(weights_of(record))
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(damaged[:-1] + b"!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # rots as a disk does it: nobody notices
    registry.adapter_files(record.digest)
    age(root)
    for dry_run in (True, False):
        assert registry.collect_garbage(dry_run=dry_run).discarded_files == 0
    assert kept(root) == [damaged]


def test_nothing_of_a_blob_goes_while_a_manifest_is_lost(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    damage(registry, root, record)
    registry.close()
    (root / "blobs" / "sha256" / digest_hex(record.digest)).unlink()
    (root / ".db").unlink()
    again = Registry(root)
    age(root)
    assert again.collect_garbage().discarded_files == 0 and len(kept(root)) == 1
    again.close()


def test_what_was_read_wrongly_is_put_back_from_quarantine(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    blob = root / "blobs" / "sha256" / digest_hex(weights_of(record))
    (root / ".quarantine" / f"{digest_hex(weights_of(record))}.00000000").write_bytes(b"other bytes")
    blob.rename(root / ".quarantine" / f"{digest_hex(weights_of(record))}.11111111")
    assert registry.fsck(heal=True).healed == (weights_of(record),)
    assert kept(root) == [b"other bytes"] and blob.stat().st_nlink == 1
    assert registry.fsck().is_clean and len(registry.adapter_files(record.digest)) == 3


def test_what_is_no_blob_and_what_is_nobodys_go_and_strangers_stay(root: Path) -> None:
    registry = Registry(root)
    publish(registry, "a", lora_files(1), tags=["v1"])
    registry.close()
    (root / ".db").write_bytes(b"no database" * 500)
    registry = Registry(root)
    for number, digest in enumerate(("d" * 64, "e" * 64, "f" * 64)):
        place = root / "blobs" / "sha256" / digest
        (place.mkdir, lambda p=place: p.symlink_to("/etc/passwd"), lambda p=place: p.write_bytes(b"?"))[number]()
        assert registry.missing_blobs([f"sha256:{digest}"]) in ([], [f"sha256:{digest}"])
    registry.fsck()
    (root / ".quarantine" / "notes.txt").write_text("mine")
    age(root)
    names = {path.name.partition(".")[0] for path in (root / ".quarantine").iterdir()}
    assert names == {"index", "d" * 64, "e" * 64, "f" * 64, "notes"}
    assert registry.collect_garbage(dry_run=True).discarded_files == 4
    assert registry.collect_garbage().discarded_files == 4
    assert [path.name for path in (root / ".quarantine").iterdir()] == ["notes.txt"]
    assert Path("/etc/passwd").exists()
    registry.close()


def test_a_collection_of_damaged_files_stopped_anywhere_keeps_the_only_copies(tmp_path: Path) -> None:
    template = tmp_path / "template"
    registry = Registry(template)
    lost, _ = publish(registry, "lost", lora_files(1), tags=["v1"])
    mended, _ = publish(registry, "mended", lora_files(2), tags=["v1"])
    damaged = [damage(registry, template, record) for record in (lost, mended)]
    publish(registry, "mended", lora_files(2), tags=["v1"])
    registry.close()
    age(template)
    points = 0
    while True:
        root = tmp_path / str(points)
        shutil.copytree(template, root)
        fault, stop = ("kill", "refuse")[points % 2], points // 2 + 1
        child, lines = fork(lambda root=root, fault=fault, stop=stop: _collect_until(root, fault, stop))
        says = lines.read().split()
        lines.close()
        os.waitpid(child, 0)
        assert damaged[0] in kept(root)
        registry = Registry(root)
        assert len(registry.adapter_files(mended.digest)) == 3
        registry.collect_garbage()
        assert kept(root) == damaged[:1]
        registry.close()
        points += 1
        if "unharmed" in says:
            break
    assert points >= 6


def _collect_until(root: Path, fault: str, stop: int) -> Iterator[str]:
    """A collection that is stopped once it has come to the damaged files."""
    registry, discard, unharmed = Registry(root), Garbage._discard, False

    def discard_until(garbage: Garbage, damaged: Sequence[DamagedFile]) -> list[DamagedFile]:
        nonlocal unharmed
        with faults(fault, stop) as reached:
            discarded = discard(garbage, damaged)
            unharmed = not reached()
        return discarded

    with pytest.MonkeyPatch.context() as patch, suppress(StoreUnavailable):
        patch.setattr(Garbage, "_discard", discard_until)
        registry.collect_garbage()
    if unharmed:
        yield "unharmed"
