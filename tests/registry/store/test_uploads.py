"""Uploads: what resumes, what is refused, what expires."""

import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_adapters import descriptor, lora_files, publish

from hotshoe.registry.errors import InvalidReference, InvalidUpload, StoreUnavailable
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.registry import Registry
from hotshoe.registry.store import uploads

DATA = bytes(range(256)) * 40
BLOB = descriptor(DATA)


@pytest.fixture(scope="module")
def one_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One store for all examples of a property."""
    store = Registry(tmp_path_factory.mktemp("property") / "store")
    yield store
    store.close()


def test_an_upload_in_chunks_becomes_a_blob(registry: Registry, root: Path) -> None:
    with registry.open_upload(BLOB) as upload:
        for start in range(0, len(DATA), 1000):
            upload.write(start, DATA[start : start + 1000])
        assert registry.missing_blobs([BLOB.digest]) == [BLOB.digest]
        assert upload.finish() == BLOB
    assert registry.missing_blobs([BLOB.digest]) == []
    assert _blob_path(root, BLOB).read_bytes() == DATA
    assert list((root / ".uploads").iterdir()) == []


def test_an_interrupted_upload_resumes_where_it_was_synced(registry: Registry) -> None:
    with registry.open_upload(BLOB) as upload:
        upload.write(0, DATA[:3000])
    with registry.open_upload(BLOB) as upload:
        assert upload.committed_bytes == upload.received_bytes == 3000
        upload.write(3000, DATA[3000:5000])
    upload = registry.open_upload(BLOB)
    assert upload.committed_bytes == 5000
    upload.write(5000, DATA[5000:])
    assert upload.finish() == BLOB and upload.committed_bytes == len(DATA)


def test_an_upload_resumes_after_a_restart(registry: Registry, root: Path) -> None:
    with registry.open_upload(BLOB) as upload:
        upload.write(0, DATA[:3000])
    registry.close()
    reopened = Registry(root)
    upload = reopened.open_upload(BLOB)
    assert upload.committed_bytes == 3000
    upload.write(3000, DATA[3000:])
    upload.finish()
    assert reopened.missing_blobs([BLOB.digest]) == []
    reopened.close()


def test_bytes_behind_the_last_sync_are_sent_again(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_COMMIT_BYTES", 2000)
    child = os.fork()
    if child == 0:  # dies with 2,500 bytes received, of which 2,000 were synced
        upload = Registry(root).open_upload(BLOB)
        upload.write(0, DATA[:2000])
        upload.write(2000, DATA[2000:2500])
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    upload = registry.open_upload(BLOB)
    assert upload.committed_bytes == 2000
    upload.write(2000, DATA[2000:])
    upload.finish()


def test_a_prefix_that_was_changed_on_the_disk_is_caught(registry: Registry, root: Path) -> None:
    with registry.open_upload(BLOB) as upload:
        upload.write(0, DATA[:3000])
    (part,) = (root / ".uploads").glob("*.part")
    part.write_bytes(b"\xff" * 3000)
    upload = registry.open_upload(BLOB)
    upload.write(3000, DATA[3000:])
    with pytest.raises(InvalidUpload, match="the blob was declared as"):
        upload.finish()
    assert registry.open_upload(BLOB).committed_bytes == 0


@pytest.mark.parametrize(
    "state", [b"", b"{", b"[]", b'{"committed_bytes":-1}', b'{"committed_bytes":99999999}', b"null"]
)
def test_a_torn_state_starts_the_upload_anew(registry: Registry, root: Path, state: bytes) -> None:
    with registry.open_upload(BLOB) as upload:
        upload.write(0, DATA[:3000])
    (note,) = (root / ".uploads").glob("*.json")
    note.write_bytes(state)
    assert registry.open_upload(BLOB).committed_bytes == 0


@pytest.mark.parametrize(
    ("offset", "data", "problem"),
    [
        (2001, b"x", "gap; expected 2000"),
        (10**18, b"x", "gap"),
        (1999, DATA[1999:2001], "overlap; expected 2000"),
        (0, DATA[:10], "overlap"),
        (-1, b"x", "overlap"),
        (2000, DATA[2000:] + b"x", "was declared with"),
    ],
)
def test_gaps_overlaps_and_surplus_are_refused_and_harm_nothing(
    registry: Registry, offset: int, data: bytes, problem: str
) -> None:
    upload = registry.open_upload(BLOB)
    upload.write(0, DATA[:2000])
    with pytest.raises(InvalidUpload, match=problem):
        upload.write(offset, data)
    upload.write(2000, DATA[2000:])
    assert upload.finish() == BLOB


def test_a_session_may_start_anew_from_the_first_byte(registry: Registry) -> None:
    with registry.open_upload(BLOB) as upload:
        upload.write(0, b"\xff" * 3000)
    upload = registry.open_upload(BLOB)
    upload.write(0, DATA)
    assert upload.finish() == BLOB


def test_an_upload_of_a_stored_blob_is_done_at_once_or_may_be_sent_again(registry: Registry) -> None:
    for _ in range(2):
        with registry.open_upload(BLOB) as upload:
            if upload.committed_bytes == 0:
                upload.write(0, DATA)
            assert upload.finish() == BLOB
    again = registry.open_upload(BLOB)
    again.write(0, DATA)
    assert again.finish() == BLOB
    assert registry.stats().blobs == 1


def test_finishing_early_is_refused_and_can_be_resumed(registry: Registry) -> None:
    upload = registry.open_upload(BLOB)
    upload.write(0, DATA[:-1])
    with pytest.raises(InvalidUpload, match=f"{len(DATA) - 1} bytes: the blob was declared with {len(DATA)}"):
        upload.finish()
    assert registry.missing_blobs([BLOB.digest]) == [BLOB.digest]
    resumed = registry.open_upload(BLOB)
    resumed.write(len(DATA) - 1, DATA[-1:])
    resumed.finish()


@settings(max_examples=30, deadline=None)
@given(bit=st.integers(0, len(DATA) * 8 - 1))
def test_a_flipped_bit_is_refused_and_nothing_of_it_stays(one_registry: Registry, bit: int) -> None:
    registry = one_registry
    flipped = bytearray(DATA)
    flipped[bit // 8] ^= 1 << bit % 8
    upload = registry.open_upload(BLOB)
    upload.write(0, bytes(flipped))
    with pytest.raises(InvalidUpload, match="the blob was declared as"):
        upload.finish()
    assert registry.stats().blobs == registry.stats().uploads == 0
    with pytest.raises(InvalidUpload, match="has ended"):
        upload.write(0, DATA)


@pytest.mark.parametrize("size_bytes", [-1, 2001, 1 << 62])
def test_a_size_out_of_bounds_is_refused_before_the_first_byte(root: Path, size_bytes: int) -> None:
    registry = Registry(root, max_blob_bytes=2000)
    with pytest.raises(InvalidUpload, match="expected 0 to 2000"):
        registry.open_upload(FileDescriptor("README.md", BLOB.digest, size_bytes))
    registry.close()


def test_an_empty_blob_can_be_uploaded(registry: Registry) -> None:
    empty = descriptor(b"", "README.md")
    registry.open_upload(empty).finish()
    assert registry.missing_blobs([empty.digest]) == []


def test_two_uploads_of_one_blob_do_not_meet(registry: Registry) -> None:
    first, second = registry.open_upload(BLOB), registry.open_upload(BLOB)
    first.write(0, DATA[:2000])
    second.write(0, b"\xff" * len(DATA))
    first.write(2000, DATA[2000:])
    with pytest.raises(InvalidUpload):
        second.finish()
    assert first.finish() == BLOB
    assert (registry.stats().blobs, registry.stats().uploads) == (1, 0)


def test_abandoned_uploads_expire_and_those_under_way_stay(root: Path) -> None:
    registry = Registry(root, upload_ttl_seconds=100)
    with registry.open_upload(BLOB) as abandoned:
        abandoned.write(0, DATA[:100])
    active = registry.open_upload(descriptor(b"other"))
    active.write(0, b"oth")
    for path in (root / ".uploads").iterdir():
        os.utime(path, (time.time() - 101,) * 2)
    other = Registry(root, upload_ttl_seconds=100)
    assert other.stats().uploads == 1
    active.write(3, b"er")
    active.finish()
    assert list((root / ".uploads").iterdir()) == []
    for store in (registry, other):
        store.close()


def test_a_part_that_is_a_blob_already_is_never_written_to(registry: Registry, root: Path) -> None:
    with registry.open_upload(BLOB) as upload:
        upload.write(0, DATA[:3000])
    (part,) = (root / ".uploads").glob("*.part")
    elsewhere = root / "elsewhere"
    os.link(part, elsewhere)
    fresh = registry.open_upload(BLOB)
    assert fresh.committed_bytes == 0
    fresh.write(0, DATA)
    fresh.finish()
    assert elsewhere.read_bytes() == DATA[:3000]


def test_a_symlink_among_the_uploads_is_not_followed(registry: Registry, root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"keep me")
    (root / ".uploads" / f"{BLOB.digest.removeprefix('sha256:')}.00.part").symlink_to(victim)
    with pytest.raises(StoreUnavailable):
        registry.open_upload(BLOB)
    assert victim.read_bytes() == b"keep me"


def test_a_disk_that_takes_no_more_fails_the_upload_and_not_the_reading(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(), tags=["v1"])
    child = os.fork()
    if child == 0:
        os._exit(_upload_beyond_the_file_size_limit(root, record.digest))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert registry.stats().uploads == 0 and registry.fsck().is_clean


def _upload_beyond_the_file_size_limit(root: Path, digest: str) -> int:
    """Runs in a child; 0 if all went as it should."""
    try:
        store = Registry(root)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        upload = store.open_upload(BLOB)
        try:
            upload.write(0, DATA)
            return 1
        except StoreUnavailable:
            pass
        return 0 if store.resolve("a:v1").digest == digest and store.adapter_files(digest) else 2
    except BaseException as error:
        print(repr(error), file=sys.stderr)
        return 3


def _blob_path(root: Path, blob: FileDescriptor) -> Path:
    return root / "blobs" / "sha256" / blob.digest.removeprefix("sha256:")


def begin(registry: Registry, size_bytes: int = len(DATA)) -> uploads.Upload:
    return registry.begin_upload(FileDescriptor("weights", "", size_bytes))


@pytest.mark.parametrize("named_after", [0, 3000, len(DATA)])
def test_the_digest_may_come_while_the_bytes_do(registry: Registry, root: Path, named_after: int) -> None:
    upload = begin(registry)
    for start in range(0, len(DATA), 1000):
        if start == named_after:
            assert not upload.name(BLOB.digest)
        upload.write(start, DATA[start : start + 1000])
    if named_after == len(DATA):
        with pytest.raises(InvalidReference):
            upload.name("sha256:0")
        upload.name(BLOB.digest)
    assert upload.finish().digest == BLOB.digest and upload.blob.file_name == "weights"
    assert _blob_path(root, BLOB).read_bytes() == DATA and list((root / ".uploads").iterdir()) == []
    with begin(registry) as again:
        again.write(0, DATA[:2000])
        assert again.name(BLOB.digest) and again.received_bytes == len(DATA)  # it need not be sent
        assert list((root / ".uploads").iterdir()) == []
        again.finish()
    assert registry.fsck().is_clean


def test_a_late_digest_is_held_against_the_bytes_and_said_once(registry: Registry, root: Path) -> None:
    upload = begin(registry)
    upload.write(0, DATA)
    upload.name(descriptor(b"other").digest)
    with pytest.raises(InvalidUpload, match="was declared as"):
        upload.name(BLOB.digest)
    with pytest.raises(InvalidUpload, match="digest sha256"):
        upload.finish()
    made_here = begin(registry)
    made_here.write(0, DATA)
    assert not made_here.name(made_here.received_digest) and made_here.finish().digest == BLOB.digest
    nameless = begin(registry)
    nameless.write(0, DATA)
    with pytest.raises(InvalidUpload, match="expected one before the upload ends"):
        nameless.finish()
    with pytest.raises(InvalidUpload, match="size_bytes"):
        begin(registry, -1)
    assert list((root / ".uploads").iterdir()) == [] and registry.fsck().is_clean


def test_once_it_is_named_an_upload_resumes_and_before_that_it_is_gone(registry: Registry, root: Path) -> None:
    with begin(registry) as upload:
        upload.write(0, DATA[:3000])
    assert list((root / ".uploads").iterdir()) == []
    with begin(registry) as upload:
        upload.write(0, DATA[:3000])
        upload.name(BLOB.digest)
    with registry.open_upload(BLOB) as upload:
        assert upload.committed_bytes == 3000
        upload.discard()
    under_way = begin(registry)
    under_way.write(0, DATA[:10])
    (root / ".uploads" / "unnamed.0.part").write_bytes(b"of a process that was killed")
    Registry(root).close()
    assert [path.name for path in (root / ".uploads").iterdir()] != ["unnamed.0.part"]
    assert len(list((root / ".uploads").iterdir())) == 1
    under_way.write(10, DATA[10:])
    under_way.name(BLOB.digest)
    under_way.finish()
