"""A store on a disk that takes no writes is read, whether it was open before or is opened then."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from read_only_disks import FailingDisk, read_only_view
from store_adapters import lora_files, publish
from store_children import check_whole

from hotshoe.clients.exchange.layout_reader import read_layout
from hotshoe.clients.exchange.sources import open_source
from hotshoe.registry.errors import RemoteRefused, StoreReadOnly, StoreUnavailable
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.directory import DirectoryRemote
from hotshoe.registry.remotes.pull import pull
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote_url import RemoteUrl

READ_ONLY = "is read-only: its file system is mounted read-only; publish, tag and collect where it can be written"


class Told(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def fsck(store: Path, *arguments: str) -> Told:
    command = [sys.executable, "-m", "hotshoe.registry", "fsck", "--registry", str(store), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return Told(ran.returncode, ran.stdout, ran.stderr)


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
    with closing(Registry(root)) as registry:
        assert registry.read_only == "its disk takes no writes any more"
        assert registry.resolve("kept:v1") == kept and registry.fsck().is_clean
        with pytest.raises(StoreReadOnly, match=f"registry {root} is read-only: its disk takes no writes any more; "):
            registry.delete_tag("kept", "v1")
    failing.unmount()
    failing.mount()
    with closing(Registry(root)) as registry:
        assert registry.resolve("kept:v1") == kept and registry.fsck().is_clean
        publish(registry, "other", lora_files(1), tags=["v1"])
        check_whole(registry, root)


def test_a_store_on_a_read_only_mount_is_read_by_all_who_read_stores(tmp_path: Path) -> None:
    with closing(Registry(tmp_path / "store")) as registry:
        kept, _ = publish(registry, "kept", lora_files(0), tags=["v1"])
        stats = registry.stats()
    with read_only_view(tmp_path, tmp_path.with_name(f"{tmp_path.name}-view")) as view:
        store = view / "store"
        with pytest.raises(StoreUnavailable, match="cannot be opened: Read-only file system"):
            Registry(view / "none")
        with closing(DirectoryRemote(RemoteUrl.parse(f"dir://{store}"))) as remote:
            with closing(Registry(tmp_path / "elsewhere")) as elsewhere:
                assert pull(elsewhere, remote, "v1", name="kept").record.digest == kept.digest
                other, _ = publish(elsewhere, "other", lora_files(1))
                with pytest.raises(RemoteRefused, match=f"{store}: registry {store} {READ_ONLY}"):
                    push(elsewhere, other, remote, name="other", tags=["v1"])
        assert fsck(store) == (0, f"{stats.blobs} blobs are sound, {stats.blob_bytes} bytes\n", "")
        refused = fsck(store, "--remote", f"dir://{tmp_path / 'elsewhere'}")
        assert refused.returncode == 2 and f"hotshoe registry: registry {store} {READ_ONLY}" in refused.stderr
        (tmp_path / "copy").mkdir()
        with open_source(store) as source:
            assert read_layout(source, tmp_path / "copy", None).digest == kept.digest
