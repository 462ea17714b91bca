"""Layouts and archives from strangers: whole and verified, or refused, and never a path out of them."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_adapters import ia3_files, lora_files, publish

from hotshoe.clients.adapter_files import CONFIG
from hotshoe.clients.errors import InvalidLayout
from hotshoe.clients.exchange import sources
from hotshoe.clients.exchange.archives import write_archive
from hotshoe.clients.exchange.layout_reader import LayoutAdapter, read_layout
from hotshoe.clients.exchange.sources import ArchiveSource, DirectorySource, open_source
from hotshoe.registry.registry import Registry
from hotshoe.registry.signing.bundle import ANNOTATIONS, BUNDLE_FILE, BUNDLE_TYPE, sign
from hotshoe.registry.signing.keys import PrivateKey

TITLE = "org.opencontainers.image.title"
FILES = lora_files(1) | {"README.md": b"# one\n"}
WRITTEN = {*FILES, "config", "adapter.card.json"}
KEY = PrivateKey.new()

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (apt: skopeo)")


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store is a layout, too: an adapter, a signature of it, and another adapter under another name."""
    root = tmp_path_factory.mktemp("layouts") / "layout"
    registry = Registry(root)
    record, _ = publish(registry, "team/one", FILES, tags=["v1"], annotations={"org.example.word": "Grüße"})
    publish(registry, "other", ia3_files(), tags=["v1"])
    bundle = sign(record.digest, KEY)
    registry.attach(
        record.digest, bundle, artifact_type=BUNDLE_TYPE, file_name=BUNDLE_FILE, annotations=dict(ANNOTATIONS)
    )
    registry.close()
    return root


class Memory:
    """A layout in memory, to be changed."""

    def __init__(self, root: Path) -> None:
        blobs = {f"blobs/sha256/{path.name}": path.read_bytes() for path in (root / "blobs" / "sha256").iterdir()}
        self.files = blobs | {name: (root / name).read_bytes() for name in ("oci-layout", "index.json")}

    def open(self, name: str) -> BinaryIO:
        if name not in self.files:
            raise InvalidLayout(f"{name}: not there")
        return io.BytesIO(self.files[name])

    @property
    def index(self) -> Any:
        return json.loads(self.files["index.json"])

    def write_index(self, index: Any) -> None:
        self.files["index.json"] = json.dumps(index).encode()

    def blob(self, digest: str) -> bytes:
        return self.files[f"blobs/sha256/{digest.removeprefix('sha256:')}"]

    def add(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        self.files[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def change_manifest(self, change: Callable[[Any], Any]) -> None:
        """Another manifest in place of team/one's, with a digest that is right."""
        index = self.index
        [one] = [one for one in index["manifests"] if named(one) == "team/one:v1"]
        manifest = json.loads(self.blob(one["digest"]))
        one.update(self.add(json.dumps(change(manifest)).encode()))
        self.write_index(index)


def short(value: object) -> str | None:
    """A parameter's name in a test's: not its kilobytes."""
    return f"{len(value)} bytes" if isinstance(value, bytes) else None


def named(descriptor: Any) -> str:
    return descriptor.get("annotations", {}).get("org.opencontainers.image.ref.name", "")


def read(source: sources.Source, directory: Path, reference: str | None = "team/one:v1") -> LayoutAdapter:
    directory.mkdir(exist_ok=True)
    return read_layout(source, directory, reference)


def archive_of(root: Path, target: Path) -> Path:
    names = [f"blobs/sha256/{path.name}" for path in sorted((root / "blobs" / "sha256").iterdir())]
    with target.open("wb") as output:
        write_archive(output, ((name, root / name) for name in [*names, "index.json", "oci-layout"]))
    return target


@pytest.mark.parametrize("kind", ["directory", "archive"])
def test_a_layout_gives_its_adapter_with_what_is_said_about_it(layout: Path, tmp_path: Path, kind: str) -> None:
    path = layout if kind == "directory" else archive_of(layout, tmp_path / "layout.tar")
    with open_source(path) as source:
        found = read(source, tmp_path / "out")
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert written.items() >= FILES.items() and set(written) == WRITTEN
    assert found.is_ours and {file.file_name: file.path.read_bytes() for file in found.files} == written
    assert f"sha256:{hashlib.sha256(found.manifest).hexdigest()}" == found.digest
    assert found.annotations["org.example.word"] == "Grüße"
    assert set(found.annotations) == {
        "org.example.word",
        "dev.hotshoe.adapter.base.name",
        "dev.hotshoe.adapter.base.digest",
    }
    [document] = found.documents
    assert (document.artifact_type, document.data) == (BUNDLE_TYPE, sign(found.digest, KEY))
    assert (document.file_name, document.annotations) == (BUNDLE_FILE, ANNOTATIONS)


def test_which_adapter_must_be_said_where_there_are_several(layout: Path, tmp_path: Path) -> None:
    source = DirectorySource(layout)
    with pytest.raises(InvalidLayout, match="'other:v1', 'team/one:v1'"):
        read(source, tmp_path, None)
    with pytest.raises(InvalidLayout, match="no adapter 'team/one:v2' of type .*; there is 'other:v1'"):
        read(source, tmp_path, "team/one:v2")
    assert read(source, tmp_path, "other:v1").documents == ()


@needs_skopeo
@pytest.mark.parametrize("form", ["oci", "oci-archive"])
def test_what_skopeo_writes_is_read(layout: Path, tmp_path: Path, form: str) -> None:
    command = ["skopeo", "copy", "--insecure-policy", f"oci:{layout}:team/one:v1", f"{form}:{tmp_path / 'copy'}:v1"]
    subprocess.run(command, check=True, capture_output=True, timeout=250)
    with open_source(tmp_path / "copy") as source, open_source(layout) as original:
        assert read(source, tmp_path / "a", None).digest == read(original, tmp_path / "b").digest


# Damage.


def test_a_changed_bit_of_any_blob_is_found(layout: Path, tmp_path: Path) -> None:
    whole = Memory(layout)
    found = read(whole, tmp_path / "whole")
    manifest = json.loads(whole.blob(found.digest))
    digests = [found.digest, manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    assert len(digests) == 6
    for number, digest in enumerate(digests):
        source, name = Memory(layout), f"blobs/sha256/{digest.removeprefix('sha256:')}"
        data = bytearray(source.files[name])
        data[len(data) // 2] ^= 1
        for broken in (bytes(data), source.files[name][:-1], source.files[name] + b" ", b""):
            source.files[name] = broken
            with pytest.raises(InvalidLayout, match=digest.removeprefix("sha256:")):
                read(source, tmp_path / str(number))
        del source.files[name]
        with pytest.raises(InvalidLayout):
            read(source, tmp_path / str(number))


def change_layer(**fields: Any) -> Callable[[Any], Any]:
    def change(manifest: Any) -> Any:
        manifest["layers"][0] |= fields
        return manifest

    return change


def rename_layer(name: str) -> Callable[[Any], Any]:
    return change_layer(annotations={"org.cncf.model.filepath": name, TITLE: name})


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("not a path", rename_layer("../adapter_model.safetensors")),
        ("not a path", rename_layer("/adapter_model.safetensors")),
        ("not a path", rename_layer("a/../adapter_model.safetensors")),
        ("not a path", rename_layer("adapter_model.safetensors\0")),
        ("there twice", rename_layer(CONFIG)),
        ("has no", rename_layer("model.safetensors")),
        ("has no", change_layer(mediaType="application/vnd.cncf.model.weight.v1.tar")),
        ("expected sha256:", change_layer(digest="sha256:../../../../etc/passwd")),
        ("expected sha256:", change_layer(digest="md5:0")),
        ("expected a number of bytes", change_layer(size=-1)),
        ("expected a number of bytes", change_layer(size=True)),
        ("its digest and size", change_layer(size=1 << 62)),
        ("layers; expected at most", lambda manifest: manifest | {"layers": manifest["layers"] * 20}),
        ("not a manifest", lambda manifest: [manifest]),
        ("no adapter .* of type", lambda manifest: manifest | {"artifactType": "application/other"}),
        ("another form", lambda manifest: manifest | {"layers": 7}),
        ("another form", lambda manifest: manifest | {"annotations": {"a": "\ud800"}}),
        ("expected text", lambda manifest: manifest | {"annotations": {"a": 1}}),
    ],
)
def test_a_manifest_that_plays_tricks_is_refused(
    layout: Path, tmp_path: Path, why: str, change: Callable[[Any], Any]
) -> None:
    source = Memory(layout)
    source.change_manifest(change)
    with pytest.raises(InvalidLayout, match=why):
        read(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} <= WRITTEN


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("oci-layout", b'{"imageLayoutVersion":"2.0.0"}', "version 1.0.0"),
        ("oci-layout", b"x" * 5000, "at most"),
        ("index.json", b"[" * 100_000, "another form"),
        ("index.json", b"{}", "another form"),
        ("index.json", b'{"manifests":[]}', "no adapter .* of type"),
        ("index.json", b'{"manifests":[1]}', "another form"),
        ("index.json", b" " * (17 << 20), "at most"),
    ],
    ids=short,
)
def test_a_layout_of_another_form_is_refused(layout: Path, tmp_path: Path, name: str, data: bytes, why: str) -> None:
    source = Memory(layout)
    source.files[name] = data
    with pytest.raises(InvalidLayout, match=why):
        read(source, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
INDEX_PATHS = (
    *(("manifests",), ("manifests", 0), ("manifests", 0, "digest"), ("manifests", 0, "size")),
    *(("manifests", 0, "annotations"), ("manifests", 0, "mediaType"), ("manifests", 0, "artifactType")),
)
MANIFEST_PATHS = (
    *(("artifactType",), ("config",), ("config", "digest"), ("config", "size"), ("annotations",), ("layers",)),
    *(("layers", 0), *(("layers", 0, key) for key in ("digest", "size", "mediaType", "annotations"))),
    ("layers", 0, "annotations", "org.cncf.model.filepath"),
)
DOCUMENT_PATHS = (
    *(("subject",), ("subject", "digest"), ("annotations",), ("artifactType",)),
    *(("layers",), ("layers", 0), ("layers", 0, "annotations")),
)


def put(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    at = value
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = new
    return value


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(path=st.sampled_from(INDEX_PATHS), value=JSON)
def test_any_index_is_read_or_refused(layout: Path, tmp_path: Path, path: tuple[str | int, ...], value: Any) -> None:
    source = Memory(layout)
    source.write_index(put(source.index, path, value))
    read_or_refused(source, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(path=st.sampled_from(MANIFEST_PATHS), value=JSON)
def test_any_manifest_is_read_or_refused(layout: Path, tmp_path: Path, path: tuple[str | int, ...], value: Any) -> None:
    source = Memory(layout)
    source.change_manifest(lambda manifest: put(manifest, path, value))
    read_or_refused(source, tmp_path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(path=st.sampled_from(DOCUMENT_PATHS), value=JSON)
def test_any_document_about_it_is_read_or_refused(
    layout: Path, tmp_path: Path, path: tuple[str | int, ...], value: Any
) -> None:
    source = Memory(layout)
    index = source.index
    [about] = [one for one in index["manifests"] if one["artifactType"] == BUNDLE_TYPE]
    about.update(source.add(json.dumps(put(json.loads(source.blob(about["digest"])), path, value)).encode()))
    source.write_index(index)
    read_or_refused(source, tmp_path)


def test_a_document_that_is_not_as_we_attach_them_is_named_and_left(layout: Path, tmp_path: Path) -> None:
    for change in (
        lambda manifest: manifest | {"layers": manifest["layers"] * 2},
        lambda manifest: manifest | {"layers": [{**manifest["layers"][0], "annotations": {}}]},
    ):
        source = Memory(layout)
        index = source.index
        [about] = [one for one in index["manifests"] if one["artifactType"] == BUNDLE_TYPE]
        about.update(source.add(json.dumps(change(json.loads(source.blob(about["digest"])))).encode()))
        source.write_index(index)
        found = read(source, tmp_path)
        assert found.documents == () and found.left_behind == (f"{BUNDLE_TYPE}: expected one layer with a file's name",)


def read_or_refused(source: Memory, directory: Path) -> None:
    for reference in ("team/one:v1", None):
        try:
            found = read(source, directory, reference)
            assert hashlib.sha256(source.blob(found.digest)).hexdigest() in found.digest
        except InvalidLayout as error:
            str(error).encode()


# Paths out of a directory or an archive.


def test_links_in_a_directory_are_refused(layout: Path, tmp_path: Path) -> None:
    for name in ("index.json", "blobs", "blobs/sha256"):
        copy = tmp_path / name.replace("/", "-")
        shutil.copytree(layout, copy)
        (copy / name).rename(copy / "moved")
        (copy / name).symlink_to(copy / "moved")
        with pytest.raises(InvalidLayout, match="symbolic link"):
            read(DirectorySource(copy), tmp_path / "out")
    copy = tmp_path / "pipe"
    shutil.copytree(layout, copy)
    (copy / "oci-layout").unlink()
    os.mkfifo(copy / "oci-layout")
    with pytest.raises(InvalidLayout, match="not a regular file"):
        read(DirectorySource(copy), tmp_path / "out")


def member(
    name: str, kind: bytes = tarfile.REGTYPE, *, link: str = "", data: bytes = b""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    return info, data


def tar_of(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return output.getvalue()


def long_name_header(size: int) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, size
    return info.tobuf(tarfile.GNU_FORMAT)


def with_nul() -> tuple[tarfile.TarInfo, bytes]:
    info, data = member("x")
    info.pax_headers = {"path": "index.json\0x"}
    return info, data


def sparse() -> tuple[tarfile.TarInfo, bytes]:
    info, data = member("index.json", data=b"0\n" + b"\0" * 510)
    fields = {"major": "1", "minor": "0", "name": "index.json", "realsize": str(1 << 40)}
    info.pax_headers = {f"GNU.sparse.{key}": value for key, value in fields.items()}
    return info, data


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (tar_of(member("../x")), "not a path below"),
        (tar_of(member("blobs/../../x")), "not a path below"),
        (tar_of(member("/etc/x")), "not a path below"),
        (tar_of(member("./../x")), "not a path below"),
        (tar_of(with_nul()), "not a path below"),
        (tar_of(member("index.json", tarfile.SYMTYPE, link="/etc/passwd")), "a link, a device"),
        (tar_of(member("index.json", tarfile.LNKTYPE, link="oci-layout")), "a link, a device"),
        (tar_of(member("index.json", tarfile.CHRTYPE)), "a link, a device"),
        (tar_of(member("index.json", tarfile.BLKTYPE)), "a link, a device"),
        (tar_of(member("index.json", tarfile.FIFOTYPE)), "a link, a device"),
        (tar_of(sparse()), "a link, a device"),
        (tar_of(member("index.json"), member("./index.json")), "there twice"),
        (tar_of(), "not in the archive"),
        (gzip.compress(tar_of(member("index.json"))), "not a tar archive"),
        (b"", "not a tar archive"),
        (b"x" * 10_000, "not a tar archive"),
        (long_name_header(1 << 33) + b"\0" * 2048, "a header of"),
        (long_name_header(8 << 20) + b"x" * (8 << 20) + tar_of(member("index.json")), "a header of"),
        (long_name_header(512) * 5000, "not a tar archive"),
    ],
    ids=short,
)
def test_an_archive_that_plays_tricks_is_refused(tmp_path: Path, data: bytes, why: str) -> None:
    with pytest.raises(InvalidLayout, match=why):
        read(ArchiveSource(io.BytesIO(data)), tmp_path / "out")


def test_an_archive_of_very_many_members_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_MEMBERS", 5)
    with pytest.raises(InvalidLayout, match="more than 5 members"):
        ArchiveSource(io.BytesIO(tar_of(*(member(f"x{number}") for number in range(6)))))


def test_an_archive_cut_anywhere_is_refused(layout: Path, tmp_path: Path) -> None:
    data = archive_of(layout, tmp_path / "layout.tar").read_bytes()
    for length in range(0, len(data.rstrip(b"\0")), 509):
        with pytest.raises(InvalidLayout):
            read(ArchiveSource(io.BytesIO(data[:length])), tmp_path / "out")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 4000), flip=st.integers(1, 255))
def test_a_changed_byte_of_an_archive_never_fails_otherwise(layout: Path, tmp_path: Path, at: int, flip: int) -> None:
    if not (tmp_path / "layout.tar").exists():
        archive_of(layout, tmp_path / "layout.tar")
    data = bytearray((tmp_path / "layout.tar").read_bytes())
    data[at] ^= flip
    try:
        read(ArchiveSource(io.BytesIO(bytes(data))), tmp_path / "out")
    except InvalidLayout as error:
        str(error).encode()


def test_an_archive_is_the_same_bytes_every_time(layout: Path, tmp_path: Path) -> None:
    first = archive_of(layout, tmp_path / "a.tar").read_bytes()
    for path in layout.rglob("*"):
        os.utime(path)
    assert archive_of(layout, tmp_path / "b.tar").read_bytes() == first
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert {(one.mtime, one.uid, one.gid, one.uname) for one in archive} == {(0, 0, 0, "")}
