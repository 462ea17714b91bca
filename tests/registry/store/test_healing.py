"""Blobs that are damaged or lost on the disk, put back while their reader waits."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from store_adapters import WEIGHTS, lora_files, publish
from store_children import overwrite

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, RemoteUnavailable
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.directory import DirectoryRemote
from hotshoe.registry.remotes.pull import pull_blob
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote_url import RemoteUrl
from hotshoe.registry.store.fsck import FsckProgress

FILES = lora_files(1)


class Source:
    """Another store, from which blobs come again; and what it was told."""

    def __init__(self, registry: Registry, remote: DirectoryRemote) -> None:
        self.registry = registry
        self.remote = remote
        self.fetches: list[tuple[str, list[str]]] = []
        self.notes: list[tuple[str, bool]] = []
        self.failure: Exception | None = None

    def fetch(self, blob: FileDescriptor, names: Sequence[str]) -> bool:
        self.fetches.append((blob.digest, list(names)))
        if self.failure:
            raise self.failure
        for name in names:
            try:
                pull_blob(self.registry, self.remote, blob, name=name)
            except AdapterNotFound:
                continue
            return True
        return False

    def note(self, digest: str, *, healed: bool) -> None:
        self.notes.append((digest, healed))


@pytest.fixture
def source(registry: Registry, tmp_path: Path) -> Iterator[Source]:
    remote = DirectoryRemote(RemoteUrl.parse(f"dir://{tmp_path / 'stick'}"))
    yield Source(registry, remote)
    remote.close()


def weights_of(registry: Registry, reference: str) -> str:
    return next(file.digest for file in registry.resolve(reference).files if file.file_name == WEIGHTS)


def flip(root: Path, digest: str, *, at: int = -1) -> None:
    """One byte of a blob becomes another, as no publisher would write it."""
    path = root / "blobs" / "sha256" / digest_hex(digest)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    overwrite(path, bytes(data))


def test_readers_of_a_damaged_blob_get_it_from_elsewhere_in_one_fetch(
    registry: Registry, root: Path, source: Source
) -> None:
    record, _ = publish(registry, "team/a", FILES, tags=["v1"])
    push(registry, record, source.remote)
    registry.heal_from(source)
    digest = weights_of(registry, "team/a:v1")
    flip(root, digest)
    barrier = threading.Barrier(16)

    def read(_: int) -> bytes:
        barrier.wait()
        return registry.adapter_files(record.digest)[WEIGHTS].read_bytes()

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(read, range(16))) == {FILES[WEIGHTS]}
    assert source.fetches == [(digest, ["team/a"])] and source.notes == [(digest, True)]
    [bad] = (root / ".quarantine").iterdir()
    assert bad.name.startswith(digest_hex(digest)) and bad.read_bytes() != FILES[WEIGHTS]
    assert registry.fsck().is_clean


def test_a_lost_blob_of_a_document_comes_under_its_adapters_names(
    registry: Registry, root: Path, source: Source
) -> None:
    record, _ = publish(registry, "b", FILES)
    publish(registry, "a", FILES)
    referrer = registry.attach(record.digest, b"[1]", artifact_type="text/x", file_name="x.json", annotations={})
    push(registry, registry.resolve(f"b@{record.digest}"), source.remote)
    registry.heal_from(source)
    (root / "blobs" / "sha256" / digest_hex(referrer.document.digest)).unlink()
    with registry.read_blob(referrer.document.digest) as file:
        assert file.read() == b"[1]"
    assert source.fetches == [(referrer.document.digest, ["a", "b"])]


def test_a_damaged_manifest_is_made_again_from_the_index(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", FILES, tags=["v1"])
    with registry.read_blob(record.digest) as file:
        whole = file.read()
    flip(root, record.digest)
    with registry.read_blob(record.digest) as file:
        assert file.read() == whole
    assert len(list((root / ".quarantine").iterdir())) == 1 and registry.fsck().is_clean


def test_without_another_place_a_damaged_blob_is_said_to_be_lost_until_it_is_published_again(
    registry: Registry, root: Path, source: Source
) -> None:
    record, _ = publish(registry, "a", FILES)
    digest = weights_of(registry, f"a@{record.digest}")
    for told in (False, True):  # without a source, and with one that does not have it
        flip(root, digest)
        with pytest.raises(BlobCorrupt, match="its .* stored bytes have digest"):
            registry.adapter_files(record.digest)
        with pytest.raises(BlobCorrupt, match="is lost; publishing its adapter again heals it"):
            registry.adapter_files(record.digest)
        assert source.notes == [(digest, False)] * 2 * told
        publish(registry, "a", FILES)
        assert registry.adapter_files(record.digest)[WEIGHTS].read_bytes() == FILES[WEIGHTS]
        registry.heal_from(source)
    source.failure = RemoteUnavailable("oci://x", "it is down")
    flip(root, digest)
    with pytest.raises(RemoteUnavailable):
        registry.adapter_files(record.digest)
    assert source.notes[-1] == (digest, False)


def test_a_full_check_heals_what_it_finds_if_it_shall(registry: Registry, root: Path, source: Source) -> None:
    records = [publish(registry, f"n{seed}", lora_files(seed))[0] for seed in range(3)]
    push(registry, records[0], source.remote)
    push(registry, records[1], source.remote)
    registry.heal_from(source)
    flipped, missing, hopeless = [weights_of(registry, f"n{seed}@{records[seed].digest}") for seed in range(3)]
    flip(root, flipped)
    flip(root, hopeless)
    (root / "blobs" / "sha256" / digest_hex(missing)).unlink()
    orphan = registry.add_files({"orphan": b"of nobody"})[0].digest
    flip(root, orphan)
    steps: list[FsckProgress] = []
    report = registry.fsck(heal=True, progress=steps.append)
    assert report.corrupt == tuple(sorted([flipped, hopeless, orphan])) and report.missing == (missing,)
    assert report.healed == tuple(sorted([flipped, missing])) and set(report.unhealed) == {hopeless, orphan}
    assert not report.is_clean and orphan not in {digest for digest, _ in source.fetches}
    assert steps[0].blobs == 0 and (steps[-1].blobs, steps[-1].blob_bytes) == (
        steps[-1].total_blobs,
        steps[-1].total_bytes,
    )
    assert registry.fsck().missing == (hopeless,)  # the orphan in quarantine is nobody's


def test_a_store_is_checked_and_healed_without_a_server(
    registry: Registry, root: Path, source: Source, tmp_path: Path
) -> None:
    record, _ = publish(registry, "a", FILES, tags=["v1"])
    push(registry, record, source.remote)
    digest = weights_of(registry, "a:v1")

    def fsck(*arguments: str | Path) -> tuple[int, str, str]:
        command = [sys.executable, "-P", "-m", "hotshoe.registry", "fsck", *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=200)
        return ran.returncode, ran.stdout, ran.stderr

    assert fsck("--registry", root)[:2] == (0, f"5 blobs are sound, {registry.stats().blob_bytes} bytes\n")
    flip(root, digest)
    code, out, _ = fsck("--registry", root)
    told = f"damaged  {digest}\n4 blobs are sound, {registry.stats().blob_bytes} bytes\n"
    damaged = len(FILES[WEIGHTS])
    told += f"in quarantine 1 damaged files, {damaged} bytes; the only copies of 1 blobs\n"
    assert (code, out) == (1, told)
    code, out, err = fsck("--registry", root, "--remote", "oci://127.0.0.1:1/x", "--remote", source.remote.url)
    assert (code, out.splitlines()[0]) == (0, f"missing  {digest}  fetched again") and "oci://127.0.0.1:1/x" in err
    assert registry.adapter_files(record.digest)[WEIGHTS].read_bytes() == FILES[WEIGHTS]
    assert fsck("--registry", tmp_path / "nowhere")[0] == 2 and not (tmp_path / "nowhere").exists()
    assert fsck("--registry", root, "--remote", "gopher://x")[0] == 2
