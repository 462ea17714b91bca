"""An adapter that was published elsewhere is kept as it stands, or refused: what it says is not believed."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_adapters import hub_base, hub_files
from store_adapters import ia3_files, lora_files, publish, small_base
from store_children import check_whole, faults, fork
from tiny_models import base_shape

from hotshoe.registry.digest import digest_of
from hotshoe.registry.errors import (
    AdapterNotFound,
    BlobNotFound,
    IncompatibleAdapter,
    InvalidAdapter,
    InvalidUpload,
    StoreUnavailable,
)
from hotshoe.registry.manifest import AdapterRecord, FileDescriptor, blob_descriptors
from hotshoe.registry.registry import Registry

OTHER_BASE = f"sha256:{'0b' * 32}"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "elsewhere")


def read(registry: Registry, digest: str) -> bytes:
    with registry.read_blob(digest) as file:
        return file.read()


def carry(blob: FileDescriptor, data: bytes, registry: Registry) -> None:
    with registry.open_upload(blob) as upload:
        if upload.received_bytes < blob.size_bytes:
            upload.write(0, data)
        upload.finish()


def carried(elsewhere: Registry, registry: Registry, record: AdapterRecord) -> bytes:
    """Brings the blobs of an adapter here, and returns its manifest."""
    manifest = read(elsewhere, record.digest)
    for blob in blob_descriptors(manifest):
        carry(blob, read(elsewhere, blob.digest), registry)
    return manifest


def changed(manifest: bytes, change: Callable[[Any], None]) -> bytes:
    document = json.loads(manifest)
    change(document)
    return json.dumps(document).encode()


def test_an_adopted_adapter_is_the_same_as_where_it_was_published(
    registry: Registry, elsewhere: Registry, root: Path
) -> None:
    record, _ = publish(elsewhere, "a", lora_files(1), tags=["v1"], annotations={"team": "x"})
    manifest = carried(elsewhere, registry, record)
    assert registry.adopt(manifest, name="a", tags=["v1"], base=small_base()) == (record, True)
    assert registry.adopt(manifest, name="a", tags=["v1"]) == (record, False)
    assert read(registry, record.digest) == manifest and registry.resolve("a:v1") == record
    assert registry.adapter_files(record.digest).keys() == elsewhere.adapter_files(record.digest).keys()
    check_whole(registry, root)
    registry.close()
    (root / ".db").unlink()
    reopened = Registry(root)
    assert reopened.resolve("a:v1") == record and reopened.fsck().is_clean
    reopened.close()


def test_an_adapter_of_another_base_is_kept_and_of_this_base_is_held_against_it(
    registry: Registry, elsewhere: Registry
) -> None:
    record, _ = publish(elsewhere, "a", lora_files(1), base=small_base(digest=OTHER_BASE))
    manifest = carried(elsewhere, registry, record)
    assert registry.adopt(manifest, name="a", tags=[], base=small_base())[0].base_digest == OTHER_BASE
    smaller = small_base(digest=OTHER_BASE)
    object.__setattr__(smaller, "linears", dict(list(smaller.linears.items())[:1]))
    with pytest.raises((IncompatibleAdapter, InvalidAdapter)):
        registry.adopt(manifest, name="a", tags=[], base=smaller)


def test_an_adapter_of_adapterhub_is_the_same_as_where_it_was_published(
    registry: Registry, elsewhere: Registry
) -> None:
    base = base_shape(hub_base("qwen2"))
    files = {name: path.read_bytes() for name, path in hub_files("qwen2", "compacter").items()}
    record, _ = publish(elsewhere, "a", files, base=base)
    manifest = carried(elsewhere, registry, record)
    assert registry.adopt(manifest, name="a", tags=[], base=small_base()) == (record, True)  # of another base
    assert registry.adopt(manifest, name="b", tags=[], base=base)[0].digest == record.digest
    paths = registry.adapter_files(record.digest)
    assert {name: paths[name].read_bytes() for name in files} == files
    for lie in ({ANNOTATION + "kind": "LORA"}, {ANNOTATION + "rank": "3"}):
        with pytest.raises(InvalidAdapter):
            false = changed(manifest, lambda document, lie=lie: document["annotations"].update(lie))
            registry.adopt(false, name="c", tags=[], base=base)


def test_every_blob_must_be_here_with_its_size(registry: Registry, elsewhere: Registry) -> None:
    record, _ = publish(elsewhere, "a", lora_files(1))
    manifest = read(elsewhere, record.digest)
    with pytest.raises(BlobNotFound) as caught:
        registry.adopt(manifest, name="a", tags=["v1"])
    assert set(caught.value.digests) == {blob.digest for blob in blob_descriptors(manifest)}
    carried(elsewhere, registry, record)
    larger = changed(manifest, lambda document: document["layers"][0].update(size=10_000))
    with pytest.raises(InvalidUpload, match=r"adapter_model\.safetensors: has .* was declared with 10000"):
        registry.adopt(larger, name="a", tags=["v1"])
    with pytest.raises(AdapterNotFound):
        registry.resolve("a:v1")


ANNOTATION = "dev.hotshoe.adapter."
LIES: dict[str, Callable[[Any], None]] = {
    "kind": lambda m: m["annotations"].update({ANNOTATION + "kind": "IA3"}),
    "unknown kind": lambda m: m["annotations"].update({ANNOTATION + "kind": "MINE"}),
    "rank": lambda m: m["annotations"].update({ANNOTATION + "rank": "3"}),
    "negative rank": lambda m: m["annotations"].update({ANNOTATION + "rank": "-1"}),
    "huge rank": lambda m: m["annotations"].update({ANNOTATION + "rank": "9" * 12}),
    "virtual tokens": lambda m: m["annotations"].update({ANNOTATION + "virtual_tokens": "4"}),
    "tasks": lambda m: m["annotations"].update({ANNOTATION + "tasks": "2"}),
    "fewer tasks than none": lambda m: m["annotations"].update({ANNOTATION + "tasks": "-1"}),
    "targets": lambda m: m["annotations"].update({ANNOTATION + "targets": "q_proj"}),
    "base digest": lambda m: m["annotations"].update({ANNOTATION + "base.digest": "sha256:1"}),
    "base name": lambda m: m["annotations"].update({ANNOTATION + "base.name": "x" * 600}),
    "parents": lambda m: m["annotations"].update({ANNOTATION + "parents": '[["sha256:1", 1]]'}),
    "parent's weight": lambda m: m["annotations"].update({ANNOTATION + "parents": f'[["sha256:{"0" * 64}", NaN]]'}),
    **{
        f"approximation {text}": lambda m, text=text: m["annotations"].update({ANNOTATION + "approximation": text})
        for text in (
            "{}",
            "null",
            '{"rank": 0, "energy": 1, "least_energy": 1, "least_linear": "x"}',
            '{"rank": 2, "energy": NaN, "least_energy": 1, "least_linear": "x"}',
            '{"rank": 2, "energy": 1, "least_energy": 1, "least_linear": "\\ud800"}',
            '{"rank": 2, "energy": 1, "least_energy": 1, "least_linear": "layers.0.q_proj"}',
        )
    },
    "recipe": lambda m: m["annotations"].update({ANNOTATION + "recipe": "merge it"}),
    "control characters": lambda m: m["annotations"].update({"note": "\x1b[2J"}),
    "half a surrogate pair": lambda m: m["annotations"].update({"note": "\ud800"}),
    "a key with a line feed": lambda m: m["annotations"].update({"no\nte": "x"}),
    "much text": lambda m: m["annotations"].update({"note": "x" * 70_000}),
    "no annotations": lambda m: m.pop("annotations"),
    "a list of annotations": lambda m: m.update(annotations=["x"]),
    "another artifact": lambda m: m.update(artifactType="application/vnd.unknown"),
    "another schema": lambda m: m.update(schemaVersion=1),
    "another media type": lambda m: m.update(mediaType="application/json"),
    "a subject": lambda m: m.update(subject={"digest": f"sha256:{'0' * 64}", "size": 1}),
    "no layers": lambda m: m.update(layers=[]),
    "a layer twice": lambda m: m["layers"].append(m["layers"][0]),
    "no card": lambda m: m["layers"].pop(),
    "a pickle": lambda m: m["layers"][0]["annotations"].update({"org.cncf.model.filepath": "adapter_model.bin"}),
    "a path": lambda m: m["layers"][1]["annotations"].update({"org.cncf.model.filepath": "../../etc/passwd"}),
    "another title": lambda m: m["layers"][1]["annotations"].update({"org.opencontainers.image.title": "x"}),
    "another layer type": lambda m: m["layers"][0].update(mediaType="application/x-tar"),
    "a negative size": lambda m: m["layers"][0].update(size=-1),
    "a fractional size": lambda m: m["layers"][0].update(size=1e400),
    "a large card": lambda m: m["layers"][2].update(size=2 << 20),
    "a large config": lambda m: m["config"].update(size=2 << 20),
    "another hash": lambda m: m["layers"][0].update(digest="sha512:" + "0" * 128),
    "a list for a layer": lambda m: m["layers"].__setitem__(0, []),
    "a number for a digest": lambda m: m["config"].update(digest=5),
    "swapped files": lambda m: _swap(m["layers"]),
}


def _swap(layers: Any) -> None:
    for key in ("digest", "size"):
        layers[0][key], layers[1][key] = layers[1][key], layers[0][key]


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_says_what_is_not_so_is_refused(lie: str, registry: Registry, elsewhere: Registry) -> None:
    record, _ = publish(elsewhere, "a", lora_files(1))
    manifest = changed(carried(elsewhere, registry, record), LIES[lie])
    with pytest.raises(InvalidAdapter) as caught:
        registry.adopt(manifest, name="a", tags=["v1"], base=small_base())
    assert str(caught.value).isascii() and str(caught.value).isprintable()
    assert registry.list() == ([], "")


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "3", '"x"', "{}", "\xff", "[" * 100_000])
def test_what_is_no_manifest_is_refused(text: str, registry: Registry) -> None:
    with pytest.raises(InvalidAdapter):
        registry.adopt(text.encode("latin-1"), name="a", tags=[])
    with pytest.raises(InvalidAdapter):
        registry.adopt_referrer(text.encode("latin-1"))


def test_files_are_read_whatever_their_base(registry: Registry, elsewhere: Registry) -> None:
    """The manifest is true to the digests; the weights behind one of them are no safetensors file."""
    record, _ = publish(elsewhere, "a", lora_files(1))
    manifest = carried(elsewhere, registry, record)
    for data in (b"\x80\x02}q\x00.", lora_files(1)["adapter_model.safetensors"][:-8]):
        blob = FileDescriptor("adapter_model.safetensors", digest_of(data), len(data))
        carry(blob, data, registry)
        damaged = changed(
            manifest, lambda m, blob=blob: m["layers"][0].update(digest=blob.digest, size=blob.size_bytes)
        )
        with pytest.raises(InvalidAdapter, match=r"adapter_model\.safetensors"):
            registry.adopt(damaged, name="a", tags=[])
    config = json.dumps({"peft_type": "IA3"}).encode()
    blob = FileDescriptor("adapter_config.json", digest_of(config), len(config))
    carry(blob, config, registry)
    other = changed(manifest, lambda m: m["layers"][1].update(digest=blob.digest, size=blob.size_bytes))
    with pytest.raises(InvalidAdapter, match="IA3"):
        registry.adopt(other, name="a", tags=[])


def test_documents_are_adopted_for_adapters_that_are_here(registry: Registry, elsewhere: Registry) -> None:
    record, _ = publish(elsewhere, "a", ia3_files(1))
    attached = elsewhere.attach(
        record.digest, b'{"score":1}', artifact_type="text/eval", file_name="eval.json", annotations={"by": "me"}
    )
    manifest = read(elsewhere, attached.digest)
    with pytest.raises(AdapterNotFound):
        registry.adopt_referrer(manifest)
    registry.adopt(carried(elsewhere, registry, record), name="b", tags=[])
    with pytest.raises(BlobNotFound):
        registry.adopt_referrer(manifest)
    carry(attached.document, b'{"score":1}', registry)
    assert registry.adopt_referrer(manifest) == attached
    assert registry.referrers(record.digest) == [attached] and read(registry, attached.digest) == manifest
    later = registry.attach(record.digest, b"{}", artifact_type="text/eval", file_name="x", annotations={})
    assert registry.referrers(record.digest) == [later, attached]
    for change in (
        lambda m: m["annotations"].update(x="\x07"),
        lambda m: m.update(artifactType=""),
        lambda m: m["layers"][0].update(size=-5),
        lambda m: m["layers"].append(m["layers"][0]),
        lambda m: m["subject"].update(digest="latest"),
        lambda m: m["config"].update(digest=attached.document.digest),
    ):
        with pytest.raises(InvalidAdapter):
            registry.adopt_referrer(changed(manifest, change))


@pytest.mark.parametrize("fault", ["kill", "refuse"])
def test_an_adoption_stopped_at_any_point_is_whole_or_absent(tmp_path: Path, elsewhere: Registry, fault: str) -> None:
    record, _ = publish(elsewhere, "a", lora_files(1), tags=["v1"])
    template = Registry(tmp_path / "template")
    manifest = carried(elsewhere, template, record)
    template.close()
    points = 0
    while True:
        root = tmp_path / str(points)
        shutil.copytree(tmp_path / "template", root)
        child, lines = fork(lambda root=root, stop=points + 1: _adopt_until(root, manifest, fault, stop))
        says = lines.read().split()
        lines.close()
        os.waitpid(child, 0)
        registry = Registry(root)
        found = registry.list()[0]
        assert found in ([], [record]) and (found or "done" not in says)
        assert registry.adopt(manifest, name="a", tags=["v1"])[0] == record
        check_whole(registry, root)
        registry.close()
        points += 1
        if "unharmed" in says:
            break
    assert points >= 10


def _adopt_until(root: Path, manifest: bytes, fault: str, stop: int) -> Iterator[str]:
    registry = Registry(root)
    with faults(fault, stop) as reached:
        try:
            registry.adopt(manifest, name="a", tags=["v1"])
        except StoreUnavailable:
            yield "refused"
        else:
            yield "done"
    if not reached():
        yield "unharmed"
