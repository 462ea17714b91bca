"""Documents about adapters: attached, listed, read by ordinary tools, and there after whatever happened."""

import json
import os
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from store_adapters import lora_files, publish
from store_children import check_whole, make_store, stopped_everywhere

from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, InvalidReference
from hotshoe.registry.referrer import DIAGNOSIS_TYPE, Referrer
from hotshoe.registry.registry import Registry

NOWHERE = f"sha256:{'0' * 64}"


def attach(
    registry: Registry, digest: str, document: bytes = b'{"grade":"OK"}', *, kind: str = "", **options: Any
) -> Referrer:
    return registry.attach(
        digest,
        document,
        artifact_type=kind or DIAGNOSIS_TYPE,
        file_name="doctor.json",
        annotations={"dev.hotshoe.doctor.grade": "OK"},
        **options,
    )


def test_a_document_is_found_by_its_adapter_and_type_the_latest_first(registry: Registry) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    other, _ = publish(registry, "a", lora_files(2))
    first, second = attach(registry, record.digest), attach(registry, record.digest, b"{}", kind="text/eval")
    attach(registry, other.digest)
    assert registry.referrers(record.digest) == [second, first]
    assert registry.referrers(record.digest, DIAGNOSIS_TYPE) == [first]
    assert first.annotations == {"dev.hotshoe.doctor.grade": "OK"} and first.subject == record.digest
    with registry.read_blob(first.document.digest) as file:
        assert file.read() == b'{"grade":"OK"}'
    assert attach(registry, record.digest) == first
    assert registry.referrers(record.digest) == [first, second]
    assert registry.list()[0] == [other, record] and registry.fsck().is_clean


def test_a_document_goes_below_those_that_outrank_it_in_one_commit(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    better, best = (attach(registry, record.digest, document) for document in (b"[1]", b"[2]"))
    other = attach(registry, record.digest, b"[3]", kind="text/eval")
    worse = attach(registry, record.digest, b"[0]", outranked_by=lambda document: document > b"[0]")
    assert registry.referrers(record.digest) == [best, better, worse, other]
    assert attach(registry, record.digest, b"[1]", outranked_by=lambda document: document > b"[1]") == better
    assert registry.referrers(record.digest, DIAGNOSIS_TYPE) == [best, better, worse]
    of_last_commit = [json.loads(line) for line in (root / "tags.log").read_text().splitlines()][-2:]
    assert [entry["referrer"] for entry in of_last_commit] == [better.digest, best.digest]
    assert of_last_commit[0]["more"] == 1 and "more" not in of_last_commit[1]
    registry.close()
    (root / ".db").unlink()
    with Registry(root) as rebuilt:
        assert rebuilt.referrers(record.digest, DIAGNOSIS_TYPE) == [best, better, worse]


def test_a_document_that_was_touched_since_it_was_read_is_read_again_within_the_commit(
    registry: Registry, root: Path
) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    better = attach(registry, record.digest, b"[1]")
    os.utime(root / "blobs" / "sha256" / better.document.digest[7:], (1, 1))
    worse = attach(registry, record.digest, b"[0]", outranked_by=lambda document: document == b"[1]")
    assert registry.referrers(record.digest) == [better, worse]


@pytest.mark.parametrize("harm", ["lost", "damaged"])
def test_a_document_that_cannot_be_read_outranks_nothing(registry: Registry, root: Path, harm: str) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    lost = attach(registry, record.digest, b"[1]")
    blob = root / "blobs" / "sha256" / lost.document.digest[7:]
    blob.unlink()
    if harm == "damaged":
        blob.write_bytes(b"[2]")
    worse = attach(registry, record.digest, b"[0]", outranked_by=lambda document: True)
    assert registry.referrers(record.digest) == [worse, lost]


def test_what_is_no_adapter_has_no_documents_and_a_document_is_no_adapter(registry: Registry) -> None:
    with pytest.raises(AdapterNotFound):
        attach(registry, NOWHERE)
    with pytest.raises(InvalidReference):
        registry.referrers("sha256:1")
    assert registry.referrers(NOWHERE) == []
    record, _ = publish(registry, "a", lora_files(1))
    referrer = attach(registry, record.digest)
    with pytest.raises(AdapterNotFound):
        registry.adapter_files(referrer.digest)
    with pytest.raises(AdapterNotFound):
        attach(registry, referrer.digest)


def test_the_manifest_is_an_oci_referrer_that_index_json_lists(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    referrer = attach(registry, record.digest)
    manifest = json.loads((root / "blobs" / "sha256" / referrer.digest.removeprefix("sha256:")).read_bytes())
    subject = root / "blobs" / "sha256" / record.digest.removeprefix("sha256:")
    assert manifest["subject"] == {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": record.digest,
        "size": subject.stat().st_size,
    }
    assert manifest["artifactType"] == manifest["layers"][0]["mediaType"] == DIAGNOSIS_TYPE
    listed = json.loads((root / "index.json").read_bytes())["manifests"]
    assert [(one["digest"], one["artifactType"]) for one in listed[1:]] == [(referrer.digest, DIAGNOSIS_TYPE)]
    check_whole(registry, root)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (apt: skopeo)")
def test_skopeo_still_reads_a_layout_with_referrers(registry: Registry, root: Path, tmp_path: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    attach(registry, record.digest)
    for arguments in (("inspect", "--raw"), ("copy", "--insecure-policy")):
        target = [f"dir:{tmp_path / 'copy'}"] if arguments[0] == "copy" else []
        command = ["skopeo", *arguments, f"oci:{root}:a:v1", *target]
        subprocess.run(command, check=True, capture_output=True, timeout=200)


@pytest.mark.parametrize("lost", [[".db"], [".db", "index.json"]])
def test_documents_are_found_again_without_the_database(root: Path, lost: list[str]) -> None:
    record = make_store(root)
    registry = Registry(root)
    referrers = [attach(registry, record.digest, b"{}", kind="text/eval"), attach(registry, record.digest)]
    registry.close()
    for name in lost:
        (root / name).unlink()
    reopened = Registry(root)
    found = reopened.referrers(record.digest)
    assert sorted(found, key=lambda one: one.digest) == sorted(referrers, key=lambda one: one.digest)
    if len(lost) == 1:  # index.json keeps their order
        assert found == referrers[::-1]
    check_whole(reopened, root)
    reopened.close()


def test_a_lost_document_does_not_keep_a_store_from_opening(root: Path) -> None:
    record = make_store(root)
    registry = Registry(root)
    kept, lost = attach(registry, record.digest), attach(registry, record.digest, b"{}", kind="text/eval")
    registry.close()
    (root / ".db").unlink()
    for digest in (lost.digest, kept.document.digest):
        (root / "blobs" / "sha256" / digest.removeprefix("sha256:")).unlink()
    reopened = Registry(root)
    assert reopened.referrers(record.digest) == [kept]
    with pytest.raises(BlobCorrupt, match="is lost"):
        reopened.read_blob(kept.document.digest)
    attach(reopened, record.digest)
    assert reopened.read_blob(kept.document.digest).read() == b'{"grade":"OK"}'
    reopened.close()


def test_an_index_of_the_version_before_gets_the_table_of_referrers(root: Path) -> None:
    record = make_store(root)
    connection = sqlite3.connect(root / ".db")
    with connection:
        for later in ("TABLE referrers", "TABLE leases", "INDEX tags_by_target", "INDEX uses_by_manifest"):
            connection.execute(f"DROP {later}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    registry = Registry(root)
    assert registry.resolve("a:live") == record
    assert registry.referrers(record.digest) == []
    assert attach(registry, record.digest).subject == record.digest
    registry.close()
    reopened = Registry(root)
    assert len(reopened.referrers(record.digest)) == 1
    reopened.close()


@pytest.mark.parametrize("fault", ["kill", "refuse"])
def test_an_attachment_stopped_at_any_point_is_whole_or_absent(tmp_path: Path, fault: str) -> None:
    record, points = make_store(tmp_path / "template"), 0

    def work(registry: Registry) -> None:
        attach(registry, record.digest)

    for root, is_done in stopped_everywhere(tmp_path / "template", fault, work):
        registry = Registry(root)
        found = registry.referrers(record.digest)
        assert found or not is_done
        for referrer in found:
            assert registry.read_blob(referrer.document.digest).read() == b'{"grade":"OK"}'
        assert registry.resolve("a:live") == record
        again = attach(registry, record.digest)
        assert registry.referrers(record.digest) == [again] and registry.fsck().is_clean
        check_whole(registry, root)
        registry.close()
        points += 1
    assert points >= 10
