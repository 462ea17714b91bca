"""Adapters to another store on the same disks and back."""

from pathlib import Path

import pytest
from store_adapters import lora_files, publish
from store_children import overwrite

from hotshoe.registry.errors import AdapterNotFound, RemoteDamaged, RemoteUnavailable, TagMoved
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.pull import mirror, pull
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote import Remote, parse_remote


@pytest.fixture
def stick(tmp_path: Path) -> Remote:
    return parse_remote(f"dir://{tmp_path / 'stick'}")


def test_what_is_pushed_comes_back_with_its_documents(registry: Registry, other: Registry, stick: Remote) -> None:
    record, _ = publish(registry, "team/a", lora_files(1), tags=["v1"])
    registry.attach(record.digest, b"1", artifact_type="text/eval", file_name="eval", annotations={})
    push(registry, record, stick, tags=["v1", "latest"])
    push(registry, record, stick, tags=["v1"])
    assert stick.list_tags("team/a") == ["latest", "v1"] and stick.resolve("team/a", "v1") == record.digest
    assert pull(other, stick, "v1", name="team/a", tags=["v1"]) == (record, True)
    assert other.referrers(record.digest) == registry.referrers(record.digest) and other.fsck().is_clean
    assert [one.record.tags for one in mirror(other, stick, "team/a", as_name="b")] == [("latest", "v1")]
    with pytest.raises(AdapterNotFound, match="dir:///"):
        stick.resolve("team/a", "v2")


def test_tags_are_compared_and_set(registry: Registry, stick: Remote) -> None:
    first, second = (publish(registry, "a", lora_files(seed))[0] for seed in (1, 2))
    push(registry, first, stick, tags=["live"], expected="")
    with pytest.raises(TagMoved):
        push(registry, second, stick, tags=["live"], expected="")
    push(registry, second, stick, tags=["live"], expected=first.digest)
    assert stick.resolve("a", "live") == second.digest


def test_damage_is_told_and_not_carried_on(registry: Registry, other: Registry, stick: Remote, tmp_path: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    push(registry, record, stick, tags=["v1"])
    blob = tmp_path / "stick" / "blobs" / "sha256" / record.files[0].digest.removeprefix("sha256:")
    overwrite(blob, blob.read_bytes()[:-1] + b"?")
    with pytest.raises(RemoteDamaged, match="dir:///.*stored bytes have digest"):
        pull(other, parse_remote(str(stick.url)), "v1", name="a")
    assert other.list() == ([], "") and other.fsck().is_clean
    push(registry, record, stick)  # which heals it
    assert pull(other, stick, "v1", name="a").created


def test_what_is_no_store_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(RemoteUnavailable, match=f"dir://{path}"):
            parse_remote(f"dir://{path}")
