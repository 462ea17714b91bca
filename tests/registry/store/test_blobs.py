"""Bytes at rest: what was damaged or planted is found, set aside and healed, and never served."""

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from store_adapters import WEIGHTS, descriptors, lora_files, publish, small_base, upload
from store_children import overwrite

from hotshoe.registry.errors import BlobCorrupt, BlobNotFound, StoreUnavailable
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry

Damage = Callable[[Path], None]


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    _replace(path, bytes(data))


def _replace(path: Path, data: bytes) -> None:
    path.rename(path.parent.parent / "replaced")  # and not removed: another file may get its inode
    path.write_bytes(data)


def _write_in_place(path: Path) -> None:
    overwrite(path, b"\xff" + path.read_bytes()[1:])


def _plant_symlink(path: Path) -> None:
    copy = path.parent.parent / "copy"
    copy.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(copy)


def _plant_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _plant_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _plant_socket(path: Path) -> None:
    path.unlink()
    here = os.open(path.parent, os.O_DIRECTORY)
    os.symlink(f"/proc/self/fd/{here}", short := f"/tmp/{os.getpid()}-{here}")  # a socket's path may have 107 bytes
    socket.socket(socket.AF_UNIX).bind(f"{short}/{path.name}")
    os.unlink(short)
    os.close(here)


DAMAGES: list[Damage] = [
    _flip_a_bit,
    lambda path: _replace(path, b""),
    lambda path: _replace(path, path.read_bytes()[:-1]),
    lambda path: _replace(path, path.read_bytes() + b"x"),
    _write_in_place,
    _plant_symlink,
    _plant_fifo,
    _plant_directory,
    _plant_socket,
    lambda path: path.unlink(),
]
NAMES = ["bit", "empty", "short", "long", "in place", "symlink", "fifo", "directory", "socket", "missing"]
each_damage = pytest.mark.parametrize("damage", DAMAGES, ids=NAMES)


@each_damage
def test_damaged_bytes_are_not_served_and_a_new_upload_heals_them(
    registry: Registry, root: Path, damage: Damage
) -> None:
    record, _ = publish(registry, "a", lora_files(), tags=["v1"])
    weights = _weights(registry, record)
    damage(weights)
    with pytest.raises(BlobCorrupt):
        registry.adapter_files(record.digest)
    with pytest.raises(BlobCorrupt):
        registry.read_blob(f"sha256:{weights.name}", 0)
    assert registry.missing_blobs([f"sha256:{weights.name}"]) == [f"sha256:{weights.name}"]
    again, created = publish(registry, "a", lora_files(), tags=["v1"])
    assert (again, created) == (record, False)
    assert registry.adapter_files(record.digest)[WEIGHTS].read_bytes() == lora_files()[WEIGHTS]
    assert registry.fsck().is_clean


@each_damage
def test_damage_after_the_check_for_missing_blobs_asks_for_them_at_publish(registry: Registry, damage: Damage) -> None:
    record, _ = publish(registry, "a", lora_files())
    weights = _weights(registry, record)
    assert registry.missing_blobs([f"sha256:{weights.name}"]) == []
    damage(weights)
    with pytest.raises(BlobNotFound) as caught:
        _publish_without_asking(registry, record)
    assert caught.value.digests == (f"sha256:{weights.name}",)


@each_damage
def test_fsck_finds_damage_that_the_clock_hides(registry: Registry, root: Path, damage: Damage) -> None:
    record, _ = publish(registry, "a", lora_files())
    assert registry.fsck().is_clean
    weights = _weights(registry, record)
    before = weights.stat()
    damage(weights)
    if weights.exists():
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    report = registry.fsck()
    assert {*report.corrupt, *report.missing} == {f"sha256:{weights.name}"}


def test_what_was_damaged_is_kept_in_quarantine(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files())
    weights = _weights(registry, record)
    _replace(weights, b"what is this")
    with pytest.raises(BlobCorrupt):
        registry.adapter_files(record.digest)
    (aside,) = (root / ".quarantine").iterdir()
    assert aside.read_bytes() == b"what is this" and aside.name.startswith(weights.name)


def test_an_upload_replaces_a_bad_file_that_lies_in_its_place(registry: Registry, root: Path) -> None:
    files = lora_files()
    blobs = upload(registry, files)
    path = root / "blobs" / "sha256" / blobs[0].digest.removeprefix("sha256:")
    for planted in (b"", b"\xff" * len(files[WEIGHTS])):
        _replace(path, planted)
        with registry.open_upload(blobs[0]) as session:
            session.write(0, files[WEIGHTS])
            session.finish()
        assert path.read_bytes() == files[WEIGHTS]


def test_bytes_are_hashed_once_and_not_again_after_a_restart(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = publish(registry, "a", lora_files())
    registry.close()
    reopened = Registry(root)
    monkeypatch.setattr("hotshoe.registry.store.blobs.digest_of_stream", None)  # hashing would raise
    assert reopened.adapter_files(record.digest)
    reopened.close()


def test_asking_for_missing_blobs_touches_those_that_are_there(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files())
    path = _weights(registry, record)
    os.utime(path, (1, 1))
    assert registry.missing_blobs([f"sha256:{path.name}"]) == []
    assert time.time() - path.stat().st_mtime < 60


def test_a_touched_blob_still_counts_as_verified(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    record, _ = publish(registry, "a", lora_files())
    path = _weights(registry, record)
    os.utime(path, (1, 1))
    registry.adapter_files(record.digest)
    registry.missing_blobs([f"sha256:{path.name}"])
    monkeypatch.setattr("hotshoe.registry.store.blobs.digest_of_stream", None)
    assert registry.adapter_files(record.digest)


@pytest.mark.parametrize("name", [".db", "index.json", "tags.log", ".tmp", ".uploads", "blobs", "blobs/sha256"])
def test_a_symlink_in_the_layout_is_refused_at_open(registry: Registry, root: Path, tmp_path: Path, name: str) -> None:
    publish(registry, "a", lora_files())
    registry.close()
    os.rename(root / name, tmp_path / "moved")
    (root / name).symlink_to(tmp_path / "moved")
    with pytest.raises(StoreUnavailable, match=f"'{name}' is a symbolic link"):
        Registry(root)


def _weights(registry: Registry, record: AdapterRecord) -> Path:
    return registry.adapter_files(record.digest)[WEIGHTS]


def _publish_without_asking(registry: Registry, record: AdapterRecord) -> None:
    registry.publish(name=record.name, tags=[], files=descriptors(lora_files()), annotations={}, base=small_base())
