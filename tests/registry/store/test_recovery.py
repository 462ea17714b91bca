"""Opening a store that was killed, torn, robbed of files or made on a disk that refuses."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_adapters import lora_files, publish
from store_children import check_whole, fork, make_store

from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, RegistryError, StoreUnavailable
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry


@pytest.mark.parametrize("lost", [[".db"], [".db", ".db-wal"], [".db", ".db-wal", ".db-shm"]])
def test_a_lost_database_is_rebuilt_from_index_json(root: Path, lost: list[str]) -> None:
    records, page = _with_history(root)
    child, lines = fork(lambda: _open_and_die(root))  # leaves a write-ahead log behind
    lines.close()
    os.waitpid(child, 0)
    for name in lost:
        (root / name).unlink(missing_ok=True)
    _check_same(root, records, page)


@pytest.mark.parametrize("garbage", [b"", b"no database at all" * 500, None])
def test_a_damaged_database_is_set_aside_and_rebuilt(root: Path, garbage: bytes | None) -> None:
    records, page = _with_history(root)
    database = root / ".db"
    if garbage is None:  # sound header, broken pages
        whole = database.read_bytes()
        garbage = whole[:4096] + b"\xff" * (len(whole) - 4096)
        assert len(garbage) > 8192
    database.write_bytes(garbage)
    _check_same(root, records, page)


@pytest.mark.parametrize("torn", [None, b"", b'{"manifests":[', b"[]", b'{"manifests":[{"digest":"sha256:../.."}]}'])
def test_a_torn_or_missing_index_json_is_exported_again(root: Path, torn: bytes | None) -> None:
    records, page = _with_history(root)
    index_json = root / "index.json"
    sound = index_json.read_bytes()
    index_json.unlink()
    if torn is not None:
        index_json.write_bytes(torn)
    Registry(root).close()
    assert index_json.read_bytes() == sound
    _check_same(root, records, page)


def test_an_index_json_that_others_changed_is_put_right(root: Path) -> None:
    records, page = _with_history(root)
    index_json = root / "index.json"
    index = json.loads(index_json.read_bytes())
    del index["manifests"][1:]
    index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = "foreign:v1"
    index_json.write_text(json.dumps(index))
    _check_same(root, records, page)
    assert b"foreign" not in index_json.read_bytes()


@pytest.mark.parametrize("torn", [None, b"", b'{"manif'])
def test_without_database_and_index_json_the_tag_log_is_replayed(root: Path, torn: bytes | None) -> None:
    records, page = _with_history(root)
    (root / ".db").unlink()
    (root / "index.json").unlink()
    if torn is not None:
        (root / "index.json").write_bytes(torn)
    _check_same(root, records, page)


@pytest.mark.parametrize("lines_left", [0, 1, 2, 3])
@pytest.mark.parametrize("half", [b"", b'{"id":4,"more":1,'])
def test_a_commit_that_is_torn_in_the_tag_log_has_not_happened(root: Path, lines_left: int, half: bytes) -> None:
    make_store(root)  # a:live
    before, log = (root / "index.json").read_bytes(), (root / "tags.log").read_bytes()
    registry = Registry(root)
    publish(registry, "a", lora_files(2), tags=["live", "v2"])  # is in the log in three lines: it, and its tags
    after = {record.digest: record.tags for record in registry.list()[0]}
    registry.close()
    added = (root / "tags.log").read_bytes().removeprefix(log).splitlines(keepends=True)
    assert len(added) == 3
    (root / ".db").unlink()
    (root / "index.json").write_bytes(before)
    (root / "tags.log").write_bytes(log + b"".join(added[:lines_left]) + half)
    registry = Registry(root)
    found = {record.digest: record.tags for record in registry.list()[0]}
    assert found == after if lines_left == 3 else list(found.values()) == [("live",)]
    assert (root / "tags.log").read_bytes() == log + b"".join(added if lines_left == 3 else [])
    assert publish(registry, "a", lora_files(2), tags=["live", "v2"])[1] == (lines_left < 3)
    assert {record.digest: record.tags for record in registry.list()[0]} == after
    tags = [logged.move.tag for logged in registry.tag_history("a")]
    assert sorted(filter(None, tags)) == ["live", "live", "v2"]
    check_whole(registry, root)
    registry.close()


def test_blobs_that_nothing_names_any_more_are_not_opened_as_an_empty_store(root: Path) -> None:
    make_store(root)
    for name in (".db", "index.json", "tags.log"):
        (root / name).unlink()
    with pytest.raises(StoreUnavailable, match="there are blobs, but neither"):
        Registry(root)


def test_a_manifest_lost_with_the_database_keeps_its_name_and_heals(root: Path) -> None:
    record = make_store(root)
    manifest = root / "blobs" / "sha256" / record.digest.removeprefix("sha256:")
    manifest.unlink()
    (root / ".db").unlink()
    registry = Registry(root)
    for call in (lambda: registry.resolve("a:live"), lambda: registry.adapter_files(record.digest)):
        with pytest.raises(BlobCorrupt, match="is lost"):
            call()
    publish(registry, "b", lora_files(5), tags=["v1"])
    assert [found.name for found in registry.list()[0]] == ["b"]
    assert publish(registry, "a", lora_files(1), tags=["live"]) == (record, False)
    assert registry.resolve("a:live") == record
    registry.close()


def test_what_crashed_publishers_staged_is_removed_at_open(root: Path) -> None:
    make_store(root)
    (root / ".tmp" / "left-behind").write_bytes(b"x" * 100)
    registry = Registry(root)
    assert list((root / ".tmp").iterdir()) == []
    registry.close()


def test_a_replaced_database_is_noticed_before_it_splits_the_store(root: Path) -> None:
    record = make_store(root)
    first = Registry(root)
    (root / ".db").unlink()
    second = Registry(root)
    with pytest.raises(StoreUnavailable, match="removed or replaced while this server ran"):
        first.update_tag("a", "new", record.digest, "")
    assert second.update_tag("a", "new", record.digest, "").tags == ("live", "new")
    first.close()
    second.close()


def test_a_database_of_another_version_is_refused(root: Path) -> None:
    make_store(root)
    with sqlite3.connect(root / ".db") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(StoreUnavailable, match="the index has version 99"):
        Registry(root)


def test_the_tag_log_tells_every_move_once_and_in_order(root: Path) -> None:
    registry = Registry(root)
    one, _ = publish(registry, "a", lora_files(1), tags=["live"])
    publish(registry, "a", lora_files(1), tags=["live"])
    two, _ = publish(registry, "a", lora_files(2))
    registry.update_tag("a", "live", two.digest, one.digest)
    registry.delete_tag("a", "live")
    registry.close()
    Registry(root).close()
    entries = [json.loads(line) for line in (root / "tags.log").read_text().splitlines()]
    assert [entry.pop("id") for entry in entries] == [1, 2, 3, 4, 5]
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]{12}\+00:00", entry.pop("time")) for entry in entries)
    assert entries == [
        {"name": "a", "tag": None, "old": None, "new": one.digest, "more": 1},
        {"name": "a", "tag": "live", "old": None, "new": one.digest},
        {"name": "a", "tag": None, "old": None, "new": two.digest},
        {"name": "a", "tag": "live", "old": one.digest, "new": two.digest},
        {"name": "a", "tag": "live", "old": two.digest, "new": None},
    ]


def test_a_line_that_a_crash_tore_from_the_tag_log_is_written_again(root: Path) -> None:
    make_store(root)
    log = root / "tags.log"
    whole = log.read_bytes()
    log.write_bytes(whole[:-30])
    Registry(root).close()
    assert log.read_bytes() == whole


def test_a_directory_that_may_not_be_read_fails_at_open_with_one_line() -> None:
    with tempfile.TemporaryDirectory() as parent:  # pytest's own is closed to other users
        os.chmod(parent, 0o755)
        root = Path(parent) / "store"
        make_store(root)
        os.chmod(root, 0)
        child, lines = fork(lambda: _open_as_nobody(root))
        says = lines.read()
        lines.close()
        os.waitpid(child, 0)
        os.chmod(root, 0o755)
    assert says == f"StoreUnavailable: registry {root}: {root} is not readable by this user\n"


@pytest.mark.parametrize("what", ["file", "foreign directory", "other layout version"])
def test_a_path_that_is_no_store_is_refused_and_left_alone(tmp_path: Path, what: str) -> None:
    root = tmp_path / "thing"
    if what == "file":
        root.write_text("mine")
    else:
        root.mkdir()
        name, text = (
            ("notes.txt", "mine") if what == "foreign directory" else ("oci-layout", '{"imageLayoutVersion":"9"}')
        )
        (root / name).write_text(text)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreUnavailable, match=f"registry {root}: ") as caught:
        Registry(root)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_closed_registry_says_so(registry: Registry) -> None:
    registry.close()
    with pytest.raises(StoreUnavailable):
        registry.resolve("a")


def test_the_store_imports_neither_torch_nor_grpc() -> None:
    program = """
        import sys
        import hotshoe.registry.registry
        print(sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "grpc", "transformers", "google"}))
    """
    ran = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "[]\n"


# Children and faults.


def _open_and_die(root: Path) -> Iterator[str]:
    registry = Registry(root)
    digest = registry.resolve("a:live").digest
    registry.update_tag("a", "temporary", digest, "")
    registry.delete_tag("a", "temporary")
    yield "opened"
    os.kill(os.getpid(), signal.SIGKILL)


def _open_as_nobody(root: Path) -> Iterator[str]:
    if os.getuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    try:
        Registry(root)
        yield "opened"
    except RegistryError as error:
        yield f"{type(error).__name__}: {error}"


# What a store must be.


def _with_history(root: Path) -> tuple[dict[str, AdapterRecord], list[AdapterRecord]]:
    """A store with tags moved and deleted and an adapter without any; what resolves there, and its listing."""
    registry = Registry(root)
    for i in range(30):
        publish(registry, "bulk", lora_files(100 + i))
    one, _ = publish(registry, "a", lora_files(1), tags=["live", "gone"])
    two, _ = publish(registry, "a", lora_files(2), tags=["v2"])
    publish(registry, "team/b", lora_files(1) | {"README.md": b"hello"}, tags=["v1", "latest"])
    registry.update_tag("a", "live", two.digest, one.digest)
    registry.delete_tag("a", "gone")
    references = ["a:live", "a:v2", "team/b", "team/b:v1", f"a@{one.digest}"]
    records = {reference: registry.resolve(reference) for reference in references}
    page, _ = registry.list(page_size=1000)
    assert records[f"a@{one.digest}"].tags == () and len(page) == 33
    registry.close()
    return records, page


def _check_same(root: Path, records: dict[str, AdapterRecord], page: list[AdapterRecord]) -> None:
    registry = Registry(root)
    assert {reference: registry.resolve(reference) for reference in records} == records
    assert registry.list(page_size=1000)[0] == page
    with pytest.raises(AdapterNotFound):
        registry.resolve("a:gone")
    check_whole(registry, root)
    publish(registry, "after", lora_files(50), tags=["v1"])
    assert registry.list(page_size=1)[0][0].name == "after"
    registry.close()
    Registry(root).close()
