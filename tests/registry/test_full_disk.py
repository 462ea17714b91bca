"""A store on a disk of its own that is full to the last block."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_adapters import lora_files, publish
from store_children import check_whole

from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.registry import Registry


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def _fill(registry: Registry, disk: Path) -> None:
    """Publishes until there is no room, then takes the crumbs."""
    with pytest.raises(StoreUnavailable):
        for seed in range(1, 200):
            publish(registry, "a", lora_files(seed) | {"README.md": bytes([65 + seed % 26]) * 400_000}, tags=["latest"])
    (disk / "crumbs").write_bytes(b"")
    fd = os.open(disk / "crumbs", os.O_WRONLY)
    with pytest.raises(OSError, match="No space left"):
        while True:
            os.write(fd, bytes(4096))
    os.close(fd)


def test_garbage_can_be_collected_on_a_full_disk(small_disk: Path) -> None:
    root = small_disk / "store"
    registry = Registry(root, reserve_bytes=1 << 20)
    kept, _ = publish(registry, "kept", lora_files(0), tags=["v1"])
    _fill(registry, small_disk)
    with pytest.raises(StoreUnavailable):
        publish(registry, "b", lora_files(1) | {"README.md": b"b" * 400_000}, tags=["v1"])
    report = registry.collect_garbage(grace_seconds=0)
    assert len(report.adapters) >= 5 and report.blob_bytes > 20_000 and report.emptied_blobs == report.blobs
    assert list((root / ".trash").iterdir()) == [] and (root / ".reserve").stat().st_size == 1 << 20
    publish(registry, "b", lora_files(1) | {"README.md": b"b" * 400_000}, tags=["v1"])
    assert registry.resolve("kept:v1") == kept and registry.fsck().is_clean
    check_whole(registry, root)
    registry.close()
    for path in root.glob(".db*"):
        path.unlink()
    reopened = Registry(root)
    assert [record.name for record in reopened.list()[0]][-1:] == ["kept"] and len(reopened.list()[0]) == 3
    check_whole(reopened, root)
    reopened.close()


def test_without_room_kept_aside_a_full_disk_says_so_and_harms_nothing(small_disk: Path) -> None:
    registry = Registry(small_disk / "store")
    kept, _ = publish(registry, "kept", lora_files(0), tags=["v1"])
    (small_disk / "others").write_bytes(bytes(1 << 20))
    _fill(registry, small_disk)
    with pytest.raises(StoreUnavailable, match="full|No space"):
        registry.collect_garbage(grace_seconds=0)
    assert registry.resolve("kept:v1") == kept and len(registry.adapter_files(kept.digest)) == 3
    (small_disk / "others").unlink()
    assert len(registry.collect_garbage(grace_seconds=0).adapters) >= 5
    assert registry.fsck().is_clean
    registry.close()
