"""What is collected, what is kept, and in which order it goes."""

import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from store_adapters import descriptors, lora_files, publish, small_base, upload
from store_children import age, check_whole, stopped_everywhere

from hotshoe.registry import publisher
from hotshoe.registry.errors import AdapterNotFound, BlobNotFound, QuotaExceeded
from hotshoe.registry.manifest import AdapterRecord, Lineage, Parent
from hotshoe.registry.registry import Registry
from hotshoe.registry.store import leases
from hotshoe.registry.store.garbage import CollectedAdapter, Garbage

DAY = 24 * 3600.0


def derive(registry: Registry, seed: int, *parents: AdapterRecord, tags: tuple[str, ...] = ()) -> AdapterRecord:
    """An adapter made of others."""
    record, _ = registry.publish(
        name="derived",
        tags=tags,
        files=upload(registry, lora_files(seed)),
        annotations={},
        base=small_base(),
        lineage=Lineage(tuple(Parent(parent.digest, 1.0) for parent in parents), {"op": "linear"}),
    )
    return record


def attach(registry: Registry, record: AdapterRecord, document: bytes = b"{}") -> str:
    referrer = registry.attach(record.digest, document, artifact_type="text/x", file_name="note.json", annotations={})
    return referrer.document.digest


def is_there(registry: Registry, record: AdapterRecord) -> bool:
    try:
        return len(registry.adapter_files(record.digest)) == 3
    except AdapterNotFound:
        return False


def test_only_what_no_tag_reaches_goes_and_old_names_do_not_find_it(registry: Registry, root: Path) -> None:
    old, _ = publish(registry, "a", lora_files(1), tags=["latest"])
    new, _ = publish(registry, "a", lora_files(2), tags=["latest"])
    age(root, 2 * DAY)
    report = registry.collect_garbage()
    assert report.adapters == (CollectedAdapter("a", old.digest),)
    assert (report.blobs, report.documents, report.emptied_blobs) == (
        3,
        0,
        0,
    )  # adapter_config.json and the card are the same
    assert is_there(registry, new) and not is_there(registry, old)
    with pytest.raises(AdapterNotFound):
        registry.resolve(f"a@{old.digest}")
    with pytest.raises(AdapterNotFound):
        registry.read_blob(old.digest)
    assert registry.list()[0] == [new] and registry.stats().blobs == 5
    check_whole(registry, root)
    assert registry.fsck().is_clean


def test_a_dry_run_tells_what_a_run_then_does(registry: Registry, root: Path) -> None:
    for seed in range(4):
        attach(registry, publish(registry, "a", lora_files(seed), tags=["latest"])[0], b"%d" % seed)
    upload(registry, {"adapter_model.safetensors": b"nobody's"})
    age(root, 2 * DAY)
    before = sorted(path for path in root.rglob("*") if not path.name.startswith(".db"))
    told = registry.collect_garbage(dry_run=True)
    assert sorted(path for path in root.rglob("*") if not path.name.startswith(".db")) == before
    assert len(told.adapters) == 3 and told.documents == 3 and told.blobs == 3 * 3 + 3 * 2 + 1
    assert registry.collect_garbage() == told
    assert registry.collect_garbage(dry_run=True).emptied_blobs == told.blobs


@pytest.mark.parametrize("young", ["published", "uploaded", "untagged", "moved", "annotated"])
def test_what_somebody_touched_within_the_grace_stays(registry: Registry, root: Path, young: str) -> None:
    files = lora_files(1)
    record, _ = publish(registry, "a", files, tags=["live"] if young in ("untagged", "moved") else [])
    age(root, 2 * DAY)
    match young:
        case "published":
            publish(registry, "b", files)
        case "uploaded":
            registry.missing_blobs([record.digest])
        case "untagged":
            registry.delete_tag("a", "live")
        case "moved":
            publish(registry, "a", lora_files(2), tags=["live"])
        case "annotated":
            attach(registry, record)
    assert registry.collect_garbage().adapters == () and is_there(registry, record)
    age(root, 2 * DAY)
    assert [gone.digest for gone in registry.collect_garbage().adapters][:1] == [record.digest]
    assert not is_there(registry, record)


def test_parents_of_what_is_kept_are_kept_unless_told_otherwise(registry: Registry, root: Path) -> None:
    first, second, stray = (publish(registry, "a", lora_files(seed))[0] for seed in range(3))
    middle = derive(registry, 10, first, second)
    child = derive(registry, 11, middle, tags=("v1",))
    untagged = derive(registry, 12, child, stray)
    age(root, 2 * DAY)
    told = registry.collect_garbage(dry_run=True, retain_parents=False)
    assert {gone.digest for gone in told.adapters} == {r.digest for r in (first, second, middle, stray, untagged)}
    gone = {gone.digest for gone in registry.collect_garbage().adapters}
    assert gone == {stray.digest, untagged.digest}
    assert all(is_there(registry, record) for record in (first, second, middle, child))
    registry.delete_tag("derived", "v1")
    age(root, 2 * DAY)
    assert len(registry.collect_garbage().adapters) == 4 and registry.stats().blobs == 0


def test_documents_stay_and_go_with_their_adapter(registry: Registry, root: Path) -> None:
    kept, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    gone, _ = publish(registry, "a", lora_files(2))
    documents = attach(registry, kept, b"about one"), attach(registry, gone, b"about the other")
    age(root, 2 * DAY)
    assert registry.collect_garbage().documents == 1
    assert registry.read_blob(documents[0]).read() == b"about one"
    with pytest.raises(AdapterNotFound):
        registry.read_blob(documents[1])
    assert registry.referrers(gone.digest) == [] and len(registry.referrers(kept.digest)) == 1
    with pytest.raises(AdapterNotFound):
        attach(registry, gone)
    registry.close()
    for name in (".db", "index.json"):
        (root / name).unlink()
    reopened = Registry(root)  # of tags.log
    assert reopened.list()[0] == [kept] and len(reopened.referrers(kept.digest)) == 1
    assert reopened.fsck().is_clean
    reopened.close()


def test_an_adapter_with_a_tag_under_another_name_keeps_all_its_names(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    publish(registry, "b", lora_files(1), tags=["v1"])
    age(root, 2 * DAY)
    assert registry.collect_garbage().adapters == ()
    assert registry.resolve(f"a@{record.digest}").tags == ()
    registry.delete_tag("b", "v1")
    age(root, 2 * DAY)
    report = registry.collect_garbage()
    assert report.adapters == (CollectedAdapter("a", record.digest), CollectedAdapter("b", record.digest))
    assert report.documents == 0


def test_blobs_of_nobody_go_when_they_are_old(registry: Registry, root: Path) -> None:
    upload(registry, lora_files(1))
    assert registry.collect_garbage().blobs == 0
    age(root, 2 * DAY)
    assert registry.collect_garbage(grace_seconds=3 * DAY).blobs == 0
    assert registry.collect_garbage().blobs == 2 and registry.stats().blobs == 0
    assert len(registry.missing_blobs([blob.digest for blob in descriptors(lora_files(1))])) == 2


def test_what_goes_lies_in_the_trash_until_the_next_collection(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    content = {path.name: path.read_bytes() for path in (root / "blobs" / "sha256").iterdir()}
    with registry.read_blob(record.digest) as reading:
        report = registry.collect_garbage(grace_seconds=0)
        assert {path.name: path.read_bytes() for path in (root / ".trash").iterdir()} == content
        assert (report.blobs, report.blob_bytes) == (5, sum(map(len, content.values())))
        again = registry.collect_garbage(grace_seconds=0)
        assert (again.emptied_blobs, again.emptied_bytes, again.blobs) == (5, report.blob_bytes, 0)
        assert list((root / ".trash").iterdir()) == []
        assert reading.read() == content[record.digest.removeprefix("sha256:")], "who reads, reads on"


def test_publishing_again_brings_back_what_was_collected(registry: Registry, root: Path) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    registry.collect_garbage(grace_seconds=0)
    again, created = publish(registry, "a", lora_files(1), tags=["v1"])
    assert created and again.digest == record.digest and is_there(registry, again)
    registry.collect_garbage(grace_seconds=0)
    assert registry.resolve("a:v1") == again and is_there(registry, again) and registry.fsck().is_clean
    check_whole(registry, root)


def test_what_is_collected_while_it_is_published_is_to_be_sent_again(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspect, files = publisher.inspect_adapter, lora_files(1)

    def collect_first(*args: Any, **options: Any) -> Any:
        registry.collect_garbage(grace_seconds=0)
        return inspect(*args, **options)

    monkeypatch.setattr(publisher, "inspect_adapter", collect_first)
    with pytest.raises(BlobNotFound) as caught:
        publish(registry, "a", files)
    assert set(caught.value.digests) == {blob.digest for blob in descriptors(files)}
    monkeypatch.undo()
    assert is_there(registry, publish(registry, "a", files)[0])


def test_a_lease_keeps_what_its_holder_uses_until_it_ends_or_expires(registry: Registry) -> None:
    one, two, three = (publish(registry, "a", lora_files(seed))[0] for seed in range(3))
    registry.lease([one.digest, two.digest], holder="server-1", ttl_seconds=3600)
    registry.lease([two.digest], holder="server-2", ttl_seconds=3600)
    registry.lease([three.digest], holder="server-3", ttl_seconds=0.05)
    time.sleep(0.1)
    assert [gone.digest for gone in registry.collect_garbage(grace_seconds=0).adapters] == [three.digest]
    registry.release_leases("server-1", [one.digest])
    assert [gone.digest for gone in registry.collect_garbage(grace_seconds=0).adapters] == [one.digest]
    registry.release_leases("server-1")
    assert is_there(registry, two) and registry.collect_garbage(grace_seconds=0).adapters == ()
    assert registry.renew_leases("server-2") == 1 and registry.renew_leases("server-3") == 0
    registry.release_leases("server-2")
    assert [gone.digest for gone in registry.collect_garbage(grace_seconds=0).adapters] == [two.digest]
    with pytest.raises(AdapterNotFound):
        registry.lease([two.digest], holder="server-1")


def test_a_lease_of_somebody_elsewhere_is_listed_and_outlives_the_process(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(time=time.time)
    monkeypatch.setattr(leases, "time", clock)
    record, other = (publish(registry, "a", lora_files(seed))[0] for seed in (1, 2))
    short = registry.lease_durably(record.digest, holder="x", ttl_seconds=900)
    again = Registry(root)
    try:
        assert again.leases() == [short] == again.leases("x") and again.leases("y") == []
        gone = again.collect_garbage(grace_seconds=0).adapters
        assert [adapter.digest for adapter in gone] == [other.digest]
    finally:
        again.close()
    clock.time = lambda: time.time() + 1000
    assert registry.leases() == []
    assert registry.lease_durably(record.digest, holder="x", ttl_seconds=900).expires > short.expires
    monkeypatch.setattr(leases, "MAX_LEASES", 1)
    with pytest.raises(QuotaExceeded, match="1 leases already"):
        registry.lease_durably(record.digest, holder="y", ttl_seconds=900)
    registry.lease_durably(record.digest, holder="x", ttl_seconds=800)  # its own it may change
    clock.time = lambda: time.time() + 1850
    registry.lease_durably(record.digest, holder="y", ttl_seconds=900)  # for x's has expired
    assert registry.release_leases("y", [record.digest]) == 1 == 1 + registry.release_leases("y")
    with pytest.raises(AdapterNotFound):
        registry.lease_durably(other.digest, holder="y", ttl_seconds=60)


def test_a_lease_at_the_last_moment_counts(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    parent, stray = (publish(registry, "a", lora_files(seed))[0] for seed in range(2))
    child = derive(registry, 2, parent)
    look, looks = Garbage._live, []

    def lease_after_the_second_look(self: Garbage, oldest: float, *, now: float, retain_parents: bool) -> set[str]:
        found = look(self, oldest, now=now, retain_parents=retain_parents)
        looks.append(found)
        if len(looks) == 2:
            registry.lease([child.digest], holder="server")
        return found

    monkeypatch.setattr(Garbage, "_live", lease_after_the_second_look)
    assert [gone.digest for gone in registry.collect_garbage(grace_seconds=0).adapters] == [stray.digest]
    assert is_there(registry, parent) and is_there(registry, child) and registry.fsck().is_clean


def test_a_clock_that_goes_back_an_hour_and_on_again_lets_nothing_go(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(registry, "a", lora_files(1), tags=["live"])
    leased, _ = publish(registry, "b", lora_files(2))
    age(root, 2 * DAY)
    registry.delete_tag("a", "live")
    lease = registry.lease_durably(leased.digest, holder="x", ttl_seconds=600)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 3600)
    publish(registry, "a", lora_files(3), tags=["live"])
    registry.delete_tag("a", "live")
    assert registry.leases() == [lease] and registry.collect_garbage(grace_seconds=3600).adapters == ()
    registry.close()
    (root / ".db").unlink()
    again = Registry(root)
    assert again.leases() == [lease] and again.collect_garbage(grace_seconds=3600).adapters == ()
    monkeypatch.undo()
    assert again.leases() == [lease] and again.collect_garbage().adapters == ()
    assert [record.name for record in again.list()[0]] == ["a", "b", "a"] and again.fsck().is_clean
    again.close()


def test_of_two_collectors_the_second_counts_what_it_removed_itself(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    attach(registry, record)
    mark, others = Garbage._mark, list[Any]()

    def mark_and_let_another_collect(self: Garbage, now: float, *, grace_seconds: float, retain_parents: bool) -> Any:
        marked = mark(self, now, grace_seconds=grace_seconds, retain_parents=retain_parents)
        if not others:
            others.append(None)
            others.append(registry.collect_garbage(grace_seconds=0))
        return marked

    monkeypatch.setattr(Garbage, "_mark", mark_and_let_another_collect)
    second = registry.collect_garbage(grace_seconds=0)
    assert (len(others[1].adapters), others[1].documents, others[1].blobs) == (1, 1, 7)
    assert (second.adapters, second.documents, second.blobs) == ((), 0, 0) and registry.stats().blobs == 0


def test_a_lease_survives_another_open_of_the_store_and_protects_parents(registry: Registry, root: Path) -> None:
    parent, _ = publish(registry, "a", lora_files(1))
    child = derive(registry, 2, parent)
    registry.lease([child.digest], holder="server", ttl_seconds=3600)
    other = Registry(root)
    assert other.collect_garbage(grace_seconds=0).adapters == ()
    other.close()
    assert is_there(registry, parent) and is_there(registry, child)


def test_an_old_index_gets_leases_and_collects(root: Path) -> None:
    registry = Registry(root)
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    publish(registry, "a", lora_files(2))
    registry.close()
    with sqlite3.connect(root / ".db") as connection:  # as version 2 had it
        connection.execute("DROP TABLE leases")
        connection.execute("DROP INDEX tags_by_target")
        connection.execute("DROP INDEX uses_by_manifest")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    registry = Registry(root)
    registry.lease([record.digest], holder="server")
    assert len(registry.collect_garbage(grace_seconds=0).adapters) == 1 and is_there(registry, record)
    registry.close()


def test_no_blob_goes_while_a_manifest_is_lost(root: Path) -> None:
    registry = Registry(root)
    record, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    registry.close()
    manifest = root / "blobs" / "sha256" / record.digest.removeprefix("sha256:")
    content = manifest.read_bytes()
    manifest.unlink()
    (root / ".db").unlink()
    registry = Registry(root)  # knows that there was one, and not what it named
    assert registry.collect_garbage(grace_seconds=0).blobs == 0 and registry.stats().blobs == 4
    registry.close()
    manifest.write_bytes(content)
    (root / ".db").unlink()
    registry = Registry(root)
    registry.collect_garbage(grace_seconds=0)
    assert registry.resolve("a:v1") == record and is_there(registry, record)
    registry.close()


@pytest.mark.parametrize("lost", [[], [".db"], [".db", "index.json"], ["index.json"]])
def test_what_was_collected_does_not_come_back_whatever_is_lost(root: Path, lost: list[str]) -> None:
    registry = Registry(root)
    kept, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    gone, _ = publish(registry, "a", lora_files(2), tags=["gone"])
    registry.delete_tag("a", "gone")
    registry.collect_garbage(grace_seconds=0)
    registry.close()
    entries = [json.loads(line) for line in (root / "tags.log").read_text().splitlines()]
    assert (entries[-1]["name"], entries[-1]["tag"], entries[-1]["old"], entries[-1]["new"]) == (
        "a",
        None,
        gone.digest,
        None,
    )
    for name in lost:
        (root / name).unlink()
    registry = Registry(root)
    assert registry.list()[0] == [kept]
    with pytest.raises(AdapterNotFound):
        registry.resolve(f"a@{gone.digest}")
    check_whole(registry, root)
    assert registry.fsck().is_clean
    registry.close()


@pytest.mark.parametrize("fault", ["kill", "refuse"])
def test_a_collection_stopped_at_any_point_tears_nothing(tmp_path: Path, fault: str) -> None:
    kept, points = _store_with_garbage(tmp_path / "template"), 0

    def work(registry: Registry) -> None:
        registry.collect_garbage(grace_seconds=0)

    for root, _ in stopped_everywhere(tmp_path / "template", fault, work):
        if points % 3 == 2:
            (root / ".db").unlink()
        registry = Registry(root)
        assert registry.resolve("a:v1") == kept and is_there(registry, kept)
        check_whole(registry, root)
        assert registry.fsck().is_clean
        registry.collect_garbage(grace_seconds=0)
        assert registry.list()[0] == [kept] and registry.stats().blobs == 5
        check_whole(registry, root)
        publish(registry, "a", lora_files(2), tags=["v2"])
        assert registry.fsck().is_clean
        registry.close()
        points += 1
    assert points >= 15


def _store_with_garbage(root: Path) -> AdapterRecord:
    registry = Registry(root)
    for seed in (5, 2):
        publish(registry, "a", lora_files(seed))
        registry.collect_garbage(grace_seconds=0)  # so that there is trash, too
    publish(registry, "a", lora_files(2))
    kept, _ = publish(registry, "a", lora_files(1), tags=["v1"])
    registry.close()
    return kept


@pytest.mark.parametrize(
    "call",
    [
        lambda registry, digest: registry.lease([digest], holder=""),
        lambda registry, digest: registry.lease([digest], holder="a\n"),
        lambda registry, digest: registry.lease([digest], holder="a", ttl_seconds=0),
        lambda registry, digest: registry.lease([digest], holder="a", ttl_seconds=float("nan")),
        lambda registry, digest: registry.lease(["sha256:../.."], holder="a"),
    ],
)
def test_a_lease_that_makes_no_sense_is_refused(registry: Registry, call: Callable[[Registry, str], None]) -> None:
    record, _ = publish(registry, "a", lora_files(1))
    with pytest.raises(Exception, match="expected"):
        call(registry, record.digest)
    registry.collect_garbage(grace_seconds=0)
    assert not is_there(registry, record)
