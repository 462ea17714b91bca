"""A store that cannot be written from here: read, repaired in memory alone, and followed while others write."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from read_only_disks import read_only_view
from store_adapters import lora_files, publish
from store_children import fork, make_store

from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, RegistryError, StoreReadOnly, StoreUnavailable
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.registry import Registry

EVALUATION = {"artifact_type": "text/x", "file_name": "x", "annotations": {}}


@pytest.fixture
def view(root: Path, tmp_path: Path) -> Iterator[Path]:
    """The store that is written at `root`, where nobody can write."""
    root.mkdir()
    with read_only_view(root, tmp_path / "view") as path:
        yield path


def everything(registry: Registry) -> list[object]:
    """What a store has: adapters with their files and documents, names, tags and their history."""
    records, _ = registry.list()
    told: list[object] = [records, registry.names(), registry.stats()]
    for record in records:
        told += [registry.adapter_files(record.digest).keys(), registry.referrers(record.digest)]
        told += [registry.manifest(record.name, record.digest), registry.tag_history(record.name)]
    return told


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below, with its time and its bytes."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


def with_history(registry: Registry) -> None:
    """Some of everything that a store can have."""
    first, _ = publish(registry, "a", lora_files(1), tags=["v1", "live"])
    second, _ = publish(registry, "a", lora_files(2), tags=["live"])
    registry.attach(second.digest, b"1", **EVALUATION)
    publish(registry, "b", lora_files(1))
    registry.delete_tag("a", "v1")
    registry.lease_durably(first.digest, holder="trainer")


def test_a_read_only_store_follows_what_others_write(root: Path, view: Path) -> None:
    with closing(Registry(root)) as writer, closing(Registry(view)) as reader, closing(Registry(view)) as another:
        assert reader.read_only == "its file system is mounted read-only" and not writer.read_only
        first, _ = publish(writer, "a", lora_files(1), tags=["v1", "live"])
        assert reader.resolve("a:live") == first == another.resolve("a:v1")
        second, _ = publish(writer, "a", lora_files(2), tags=["live"])
        assert reader.resolve("a:live") == second and everything(reader) == everything(writer)
        report = writer.attach(second.digest, b"1", **EVALUATION)
        assert reader.referrers(second.digest) == [report]
        writer.delete_tag("a", "v1")
        with pytest.raises(AdapterNotFound, match="a has the tags live"):
            reader.resolve("a:v1")
        publish(writer, "b", lora_files(1))
        writer.update_tag("a", "live", first.digest, second.digest)
        assert everything(reader) == everything(writer) == everything(another)


def test_what_is_collected_elsewhere_is_gone(root: Path, view: Path) -> None:
    with closing(Registry(root)) as writer, closing(Registry(view)) as reader:
        record, _ = publish(writer, "a", lora_files(1), tags=["live"])
        writer.attach(record.digest, b"1", **EVALUATION)
        kept, _ = publish(writer, "b", lora_files(2), tags=["live"])
        assert reader.resolve("a:live") == record
        writer.delete_tag("a", "live")
        writer.collect_garbage(grace_seconds=-7200)  # past what the log's clock may have gone back by
        with pytest.raises(AdapterNotFound):
            reader.adapter_files(record.digest)
        with pytest.raises(AdapterNotFound):
            reader.read_blob(record.files[0].digest)
        assert reader.list()[0] == [kept] and reader.names() == ["b"]
        again, _ = publish(writer, "a", lora_files(1), tags=["live"])
        assert reader.resolve("a:live") == again and everything(reader) == everything(writer)


def test_no_write_is_taken_and_each_says_where_why_and_what_to_do(root: Path, view: Path) -> None:
    with closing(Registry(root)) as writer:
        with_history(writer)
        record = writer.resolve("a:live")
        held = next(lease.digest for lease in writer.leases())
        publish(writer, "c", lora_files(4))
        garbage = writer.collect_garbage(grace_seconds=-7200, dry_run=True)
    before = tree(root)
    new = FileDescriptor("x", f"sha256:{'0' * 64}", 1)
    writes: list[Callable[[Registry], object]] = [
        lambda registry: publish(registry, "c", lora_files(3)),
        lambda registry: registry.open_upload(new),
        lambda registry: registry.begin_upload(new),
        lambda registry: registry.adopt(registry.manifest("a", record.digest), name="c", tags=[]),
        lambda registry: registry.attach(record.digest, b"2", **EVALUATION),
        lambda registry: registry.update_tag("a", "new", record.digest, ""),
        lambda registry: registry.delete_tag("a", "live"),
        lambda registry: registry.roll_back_tag("a", "live"),
        lambda registry: registry.collect_garbage(grace_seconds=0),
        lambda registry: registry.lease_durably(record.digest, holder="me"),
        lambda registry: registry.release_leases("trainer", [held]),
        lambda registry: registry.view(record.digest),
        lambda registry: registry.unview(record.digest),
        lambda registry: registry.check_writable(),
    ]
    told = f"registry {view} is read-only: its file system is mounted read-only; publish, tag and collect where it can "
    with closing(Registry(view, reserve_bytes=1 << 20)) as reader:
        for write in writes:
            with pytest.raises(StoreReadOnly) as refused:
                write(reader)
            assert str(refused.value) == f"{told}be written, or copy it (cp -a) and serve the copy"
        assert reader.collect_garbage(grace_seconds=-7200, dry_run=True) == garbage and garbage.adapters
        assert reader.resolve("a:live") == record
    assert tree(root) == before


def test_leases_of_those_who_only_read_are_kept_in_memory(root: Path, view: Path) -> None:
    with closing(Registry(root)) as writer, closing(Registry(view)) as reader:
        record, _ = publish(writer, "a", lora_files(1))
        writer.lease_durably(record.digest, holder="trainer")
        reader.lease([record.digest], holder="reader", ttl_seconds=60)
        assert [lease.holder for lease in reader.leases()] == ["reader", "trainer"]
        assert [lease.holder for lease in writer.leases()] == ["trainer"]
        assert reader.renew_leases("reader") == 1 and reader.renew_leases("trainer") == 0
        assert reader.release_leases("reader") == 1 and reader.leases() == writer.leases()
        with pytest.raises(AdapterNotFound):
            reader.lease([f"sha256:{'0' * 64}"], holder="reader")


def _tear_index_json(root: Path) -> None:
    (root / "index.json").write_bytes((root / "index.json").read_bytes()[:-40])


def _tear_log(root: Path) -> None:
    with (root / "tags.log").open("ab") as log:
        log.write(b'{"id":99,"more":1,"name":"a","new":null,"old":null,"tag":"live","time":"2026"}\n{"id":100,"na')


def _lose_logs(root: Path) -> None:
    (root / "index.json").unlink()
    (root / "tags.log").unlink()
    assert (root / ".db-wal").stat().st_size, "what is to be replayed"


def _lose_empty_directories(root: Path) -> None:
    for name in (".uploads", ".quarantine", ".trash", ".tmp", "views"):
        (root / name).rmdir()


HARM: dict[str, Callable[[Path], None]] = {
    "nothing": lambda root: None,
    "index.json is torn": _tear_index_json,
    "index.json is lost": lambda root: (root / "index.json").unlink(),
    "tags.log is torn": _tear_log,
    "the database is lost": lambda root: (root / ".db").unlink(),
    "the database is damaged": lambda root: (root / ".db").write_bytes(b"x" * 8192),
    "only the database and its log say what there is": _lose_logs,
    "empty directories are lost, as by an image builder": _lose_empty_directories,
    "leases.log is torn": lambda root: (root / "leases.log").write_bytes(b'\n{"digest":'),
}


@pytest.mark.parametrize("harm", HARM)
def test_what_needs_repair_is_repaired_in_memory(root: Path, tmp_path: Path, harm: str) -> None:
    copy, view = tmp_path / "copy", tmp_path / "view"
    with closing(Registry(root)) as writer:
        with_history(writer)
        shutil.copytree(root, copy)  # as it is while it is written to
        has_log = "only the database" not in harm
        expected = everything(writer) if has_log else [writer.list(), writer.referrers(writer.resolve("a:live").digest)]
    HARM[harm](copy)
    before = tree(copy)
    with read_only_view(copy, view), closing(Registry(view)) as reader:
        if has_log:
            assert everything(reader) == expected
        else:
            assert [reader.list(), reader.referrers(reader.resolve("a:live").digest)] == expected
        assert [lease.holder for lease in reader.leases()] == ([] if "leases" in harm else ["trainer"])
        assert reader.fsck().is_clean
    assert tree(copy) == before


def test_blobs_that_nothing_names_are_not_taken_for_an_empty_store(root: Path, view: Path) -> None:
    make_store(root)
    for name in ("index.json", "tags.log", ".db"):
        (root / name).unlink()
    with pytest.raises(StoreUnavailable, match=f"registry {view}: there are blobs, but neither .db nor index.json nor"):
        Registry(view)


def test_damage_is_told_and_left_where_it_is(root: Path, view: Path) -> None:
    record = make_store(root)
    blob = root / "blobs" / "sha256" / record.files[0].digest.removeprefix("sha256:")
    blob.chmod(0o644)
    blob.write_bytes(b"x" * blob.stat().st_size)
    before = tree(root)
    with closing(Registry(view)) as reader:
        for _ in range(2):
            with pytest.raises(BlobCorrupt):
                reader.adapter_files(record.digest)
        assert reader.fsck(heal=True).unhealed == (record.files[0].digest,)
    assert tree(root) == before


def test_what_was_known_is_served_while_the_disk_gives_nothing_and_another_store_is_followed(
    root: Path, view: Path, tmp_path: Path
) -> None:
    record = make_store(root)
    with closing(Registry(view)) as reader:
        (root / "tags.log").rename(root / "aside")
        (root / "tags.log").symlink_to("tags.log")  # reading it fails
        assert reader.resolve("a:live") == record
        (root / "tags.log").unlink()
        assert reader.resolve("a:live") == record
        for entry in root.iterdir():  # the directory itself stays, which is mounted
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        with closing(Registry(tmp_path / "other")) as other:
            replaced, _ = publish(other, "c", lora_files(5), tags=["v1"])
        shutil.copytree(tmp_path / "other", root, dirs_exist_ok=True)
        assert reader.list()[0] == [replaced]


def test_a_directory_of_somebody_else_is_read() -> None:
    def read(root: Path) -> Iterator[str]:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with closing(Registry(root)) as reader:
            yield reader.read_only
            yield str([record.name for record in reader.list()[0]])
            try:
                reader.delete_tag("a", "live")
            except RegistryError as error:
                yield f"{type(error).__name__}: {error}"

    with tempfile.TemporaryDirectory() as parent:  # pytest's own is closed to other users
        os.chmod(parent, 0o755)
        root = Path(parent) / "store"
        make_store(root)
        os.chmod(root, 0o555)
        child, lines = fork(lambda: read(root))
        told = lines.read().splitlines()
        lines.close()
        os.waitpid(child, 0)
        os.chmod(root, 0o755)
    assert told[:2] == [f"this user may not write to {root}", "['a']"]
    assert told[2].startswith(f"StoreReadOnly: registry {root} is read-only: this user may not write to {root}; pub")
