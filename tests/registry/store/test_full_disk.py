"""A store on a disk of its own that is full to the last block."""

import os
import subprocess
from collections.abc import Callable, Iterator
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


def test_a_store_opens_on_a_full_disk_in_the_room_kept_aside(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = small_disk / "store"
    registry = Registry(root, reserve_bytes=1 << 20)
    kept, _ = publish(registry, "kept", lora_files(0), tags=["v1"])
    lease = registry.lease_durably(kept.digest, holder="x")
    _fill(registry, small_disk)
    (small_disk / "crumbs").unlink()  # so that the log is written back
    registry.close()
    with (small_disk / "more").open("wb", buffering=0) as more, pytest.raises(OSError, match="No space left"):
        while True:  # what its write-ahead log took until now
            more.write(bytes(4096))
    registry = Registry(root, reserve_bytes=1 << 20)
    assert "in the room that was kept aside" in caplog.text
    assert registry.resolve("kept:v1") == kept and registry.leases() == [lease]
    assert len(registry.collect_garbage(grace_seconds=0).adapters) >= 5
    publish(registry, "b", lora_files(1), tags=["v1"])
    assert registry.fsck().is_clean
    registry.close()


def test_whatever_a_full_disk_refuses_is_said_and_harms_nothing(small_disk: Path) -> None:
    registry = Registry(small_disk / "store")
    kept, _ = publish(registry, "kept", lora_files(0), tags=["v1"])
    other, _ = publish(registry, "kept", lora_files(500), tags=["other"])
    registry.view(kept.digest)
    registry.lease([kept.digest], holder="server")
    leases = registry.leases()
    _fill(registry, small_disk)
    refused: list[Callable[[], object]] = [
        lambda: publish(registry, "b", lora_files(1) | {"README.md": b"b" * 400_000}),
        lambda: publish(registry, "b", lora_files(500), tags=["new"]),
        lambda: registry.update_tag("kept", "new", kept.digest, ""),
        lambda: registry.delete_tag("kept", "other"),
        lambda: registry.attach(kept.digest, b"1", artifact_type="text/x", file_name="x", annotations={}),
        lambda: registry.lease([kept.digest], holder="y"),
        lambda: registry.lease_durably(kept.digest, holder="y"),
        lambda: registry.renew_leases("server", ttl_seconds=99),
        lambda: registry.release_leases("server"),
        lambda: registry.collect_garbage(grace_seconds=0),
    ]
    for call in refused:
        with pytest.raises(StoreUnavailable, match="full|No space"):
            call()
    assert registry.resolve("kept:v1") == kept and registry.resolve("kept:other") == other
    assert registry.leases() == leases and registry.referrers(kept.digest) == []
    assert len(registry.adapter_files(kept.digest)) == 3 and registry.fsck().is_clean
    assert registry.unview(kept.digest), "what gives room back goes"
    (small_disk / "crumbs").unlink()
    check_whole(registry, small_disk / "store")
    registry.close()
    again = Registry(small_disk / "store")
    assert again.leases() == leases and again.resolve("kept:other") == other
    again.close()
