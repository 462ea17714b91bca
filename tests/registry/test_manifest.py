"""The artifact: canonical, valid for ModelPack, and read by an ordinary OCI tool."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st
from store_adapters import ia3_files, lora_files, publish, small_base

from hotshoe.registry.manifest import NotAnAdapter, canonical_json, read_manifest
from hotshoe.registry.registry import Registry
from hotshoe.registry.store.index_json import build_index, read_index, read_log_id
from hotshoe.registry.store.index_rows import IndexEntry, ReferrerRow

# The keys that ModelPack's config schema allows; each object there says additionalProperties: false.
DESCRIPTOR_KEYS = {
    *("createdAt", "authors", "family", "name", "docURL", "sourceURL", "datasetsURL", "version", "revision", "vendor"),
    *("licenses", "title", "description"),
}
CONFIG_KEYS = set("architecture format paramSize precision quantization transformerConfig capabilities".split())
MODEL = "application/vnd.cncf.model"

needs_skopeo = pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (apt: skopeo)")


def test_the_manifest_is_what_modelpack_asks_for(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "team/sql", lora_files() | {"README.md": b"# SQL\n"}, tags=["v1"])
    manifest = _document(root, record.digest)
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert manifest["artifactType"] == f"{MODEL}.manifest.v1+json"
    assert [(layer["mediaType"], layer["annotations"]) for layer in manifest["layers"]] == [
        (f"{MODEL}.{kind}.v1.raw", {"org.cncf.model.filepath": name, "org.opencontainers.image.title": name})
        for kind, name in (
            ("weight", "adapter_model.safetensors"),
            ("weight.config", "adapter_config.json"),
            ("weight.config", "adapter.card.json"),
            ("doc", "README.md"),
        )
    ]
    for layer in [manifest["config"], *manifest["layers"]]:
        data = _blob(root, layer["digest"])
        assert len(data) == layer["size"] and layer["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"


def test_the_config_has_only_keys_of_modelpacks_schema(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files())
    manifest = _document(root, record.digest)
    assert manifest["config"]["mediaType"] == f"{MODEL}.config.v1+json"
    config = _document(root, manifest["config"]["digest"])
    assert set(config) == {"descriptor", "config", "modelfs"}
    assert set(config["descriptor"]) <= DESCRIPTOR_KEYS
    assert set(config["config"]) <= CONFIG_KEYS
    assert config["config"]["precision"] == "fp32"
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}
    assert all(isinstance(value, str) and value for part in ("descriptor", "config") for value in config[part].values())


def test_every_document_of_ours_is_canonical_json_without_times(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(), tags=["v1"], annotations={"org.example.word": "Grüße"})
    manifest = _document(root, record.digest)
    card = registry.adapter_files(record.digest)["adapter.card.json"].read_bytes()
    documents = (_blob(root, record.digest), _blob(root, manifest["config"]["digest"]), card)
    for document in (*documents, (root / "index.json").read_bytes()):
        assert rfc8785.dumps(json.loads(document)) == document
        assert b"created" not in document and b"time" not in document


def test_the_card_tells_what_was_found_in_the_files(registry: Registry, root: Path) -> None:
    files = lora_files(rank=4)
    record, _ = publish(registry, "a", files)
    card = json.loads(registry.adapter_files(record.digest)["adapter.card.json"].read_bytes())
    fingerprint = card["base"].pop("fingerprint")
    assert fingerprint.pop("shapes_sha256") and fingerprint == {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "vocab_size": 32,
    }
    assert card == {
        "schema": 1,
        "kind": "LORA",
        "base": {"name": "org/small", "digest": small_base().digest},
        "rank": 4,
        "target_modules": ["q_proj", "v_proj"],
        "virtual_tokens": 0,
        "dtype": card["dtype"],
        "params": 4 * 4 * 8,
        "tensors": 4,
        "bytes": len(files["adapter_model.safetensors"]),
    }
    ours = {key.removeprefix("dev.hotshoe.adapter."): value for key, value in record.annotations.items()}
    assert ours == {
        "schema": "1",
        "kind": "LORA",
        "rank": "4",
        "virtual_tokens": "0",
        "targets": "q_proj,v_proj",
        "dtype": card["dtype"],
        "base.name": "org/small",
        "base.digest": small_base().digest,
    }


def test_an_adapter_without_a_rank_has_rank_zero(registry: Registry) -> None:
    record, _ = publish(registry, "a", ia3_files())
    assert (record.kind, record.rank, record.target_modules) == ("IA3", 0, ("v_proj",))


@pytest.mark.parametrize("change", ["artifactType", "annotations", "layers", "config"])
def test_a_manifest_of_another_make_is_not_an_adapter(registry: Registry, root: Path, change: str) -> None:
    record, _ = publish(registry, "a", lora_files())
    manifest = _document(root, record.digest)
    for other in ("x", [], {}, [{"annotations": {"org.cncf.model.filepath": "../x"}, "digest": "x", "size": 1}], None):
        with pytest.raises(NotAnAdapter):
            read_manifest(json.dumps(manifest | {change: other}).encode())
    with pytest.raises(NotAnAdapter):
        read_manifest(b"[" * 100_000)


NAMES = st.from_regex(r"[a-z0-9]{1,5}(/[a-z0-9]{1,5})?", fullmatch=True)
TAGS = st.none() | st.from_regex(r"[A-Za-z0-9]{1,5}", fullmatch=True)
DIGESTS = st.binary(max_size=4).map(lambda data: f"sha256:{hashlib.sha256(data).hexdigest()}")
ENTRIES = st.lists(st.builds(IndexEntry, NAMES, TAGS, DIGESTS, st.integers(0, 1 << 40)), max_size=6)
REFERRERS = st.lists(st.builds(ReferrerRow, DIGESTS, DIGESTS, st.just("a/b"), st.integers(0, 1 << 40)), max_size=4)


@given(entries=ENTRIES, referrers=REFERRERS, log_id=st.integers(0, 1 << 53))
def test_index_json_reads_back_as_it_was_written(
    entries: list[IndexEntry], referrers: list[ReferrerRow], log_id: int
) -> None:
    document = build_index(entries, referrers, log_id=log_id)
    assert read_index(document) == (entries, referrers, log_id) and read_log_id(document) == log_id
    assert canonical_json(json.loads(document)) == document


@given(entries=ENTRIES.filter(bool), data=st.data())
def test_a_cut_index_json_is_torn(entries: list[IndexEntry], data: st.DataObject) -> None:
    whole = build_index(entries)
    assert read_index(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@needs_skopeo
def test_skopeo_reads_the_live_layout(registry: Registry, root: Path, tmp_path: Path) -> None:
    files = lora_files() | {"README.md": b"# SQL\n"}
    record, _ = publish(registry, "team/sql", files, tags=["v1", "latest"])
    publish(registry, "team/sql", lora_files(2))  # untagged: listed without a ref.name
    for tag in ("v1", "latest"):
        raw = _skopeo("inspect", "--raw", f"oci:{root}:team/sql:{tag}")
        assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == record.digest
    config = json.loads(_skopeo("inspect", "--config", "--raw", f"oci:{root}:team/sql:v1"))
    assert config["modelfs"]["type"] == "layers"
    _skopeo("copy", "--insecure-policy", f"oci:{root}:team/sql:v1", f"dir:{tmp_path / 'copy'}")
    for file in record.files:
        copied = (tmp_path / "copy" / file.digest.removeprefix("sha256:")).read_bytes()
        assert copied == files.get(file.file_name, copied) and len(copied) == file.size_bytes


@needs_skopeo
def test_skopeo_follows_a_moved_and_a_deleted_tag(registry: Registry, root: Path) -> None:
    publish(registry, "a", lora_files(1), tags=["live"])
    two, _ = publish(registry, "a", lora_files(2), tags=["live"])
    raw = _skopeo("inspect", "--raw", f"oci:{root}:a:live")
    assert f"sha256:{hashlib.sha256(raw).hexdigest()}" == two.digest
    registry.delete_tag("a", "live")
    with pytest.raises(subprocess.CalledProcessError):
        _skopeo("inspect", "--raw", f"oci:{root}:a:live")


def _skopeo(*arguments: str) -> bytes:
    return subprocess.run(["skopeo", *arguments], check=True, capture_output=True, timeout=200).stdout


def _blob(root: Path, digest: str) -> bytes:
    return (root / "blobs" / "sha256" / digest.removeprefix("sha256:")).read_bytes()


def _document(root: Path, digest: str) -> Any:
    return json.loads(_blob(root, digest))
