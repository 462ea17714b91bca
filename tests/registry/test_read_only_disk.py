"""A store on a disk that takes no writes: opening it says so, and one that is open goes on to be read."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from read_only_disks import FailingDisk, read_only_view
from store_adapters import lora_files, publish
from store_children import check_whole

from hotshoe.clients.exchange.layout_reader import read_layout
from hotshoe.clients.exchange.sources import open_source
from hotshoe.registry.errors import RemoteUnavailable, StoreUnavailable
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.directory import DirectoryRemote
from hotshoe.registry.remotes.remote_url import RemoteUrl

READ_ONLY = "its file system is mounted read-only; `hotshoe import` copies adapters from there"


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[FailingDisk]:
    disk = FailingDisk(tmp_path)
    yield disk
    disk.unmount()


def test_a_store_is_read_on_while_its_disk_takes_no_writes_and_is_whole_afterwards(failing: FailingDisk) -> None:
    root = failing.path / "store"
    with closing(Registry(root, reserve_bytes=1 << 20)) as registry:
        kept, _ = publish(registry, "kept", lora_files(0), tags=["v1"])
        failing.give_up()
        assert registry.resolve("kept:v1") == kept and registry.list()[0] == [kept]
        with registry.read_blob(kept.files[0].digest) as file:
            assert file.read(1)
        assert registry.fsck().is_clean
        for write in (
            lambda: publish(registry, "other", lora_files(1), tags=["v1"]),
            lambda: registry.update_tag("kept", "v2", kept.digest, ""),
            lambda: registry.delete_tag("kept", "v1"),
            lambda: registry.collect_garbage(grace_seconds=0),
        ):
            with pytest.raises(StoreUnavailable, match="Read-only file system"):
                write()
        assert registry.resolve("kept:v1") == kept
    with pytest.raises(StoreUnavailable, match=f"registry {root}: cannot be opened: Read-only file system"):
        Registry(root)
    failing.unmount()
    failing.mount()
    with closing(Registry(root)) as registry:
        assert registry.resolve("kept:v1") == kept and registry.fsck().is_clean
        publish(registry, "other", lora_files(1), tags=["v1"])
        check_whole(registry, root)


def test_a_store_on_a_read_only_mount_is_not_opened_and_can_be_imported_from(tmp_path: Path) -> None:
    with closing(Registry(tmp_path / "store")) as registry:
        kept, _ = publish(registry, "kept", lora_files(0), tags=["v1"])
    with read_only_view(tmp_path, tmp_path.with_name(f"{tmp_path.name}-view")) as view:
        store = view / "store"
        with pytest.raises(StoreUnavailable, match=f"registry {store}: {READ_ONLY}"):
            Registry(store)
        with pytest.raises(StoreUnavailable, match="cannot be opened: Read-only file system"):
            Registry(view / "none")
        with pytest.raises(RemoteUnavailable, match=f"{store}: registry {store}: {READ_ONLY}"):
            DirectoryRemote(RemoteUrl.parse(f"dir://{store}"))
        command = [sys.executable, "-m", "hotshoe.registry", "serve", "--registry", str(store), "--http", "127.0.0.1:0"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert told.returncode == 2
        assert told.stderr.splitlines()[-1] == f"hotshoe registry: registry {store}: {READ_ONLY}"
        (tmp_path / "copy").mkdir()
        with open_source(store) as source:
            assert read_layout(source, tmp_path / "copy", None).digest == kept.digest
