"""All that a registry tells, before its index is lost and after."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_adapters import ia3_files, lora_files, publish, small_base, upload
from store_children import age, check_whole

from hotshoe.registry.errors import RegistryError
from hotshoe.registry.manifest import AdapterRecord, Lineage, Parent
from hotshoe.registry.registry import Registry
from hotshoe.registry.store import export
from hotshoe.registry.store.quotas import Quota

DAY = 24 * 3600.0
QUOTAS = {"*": Quota(1 << 20, 20), "team/": Quota(1 << 20, 2)}


def with_everything(root: Path) -> None:
    """A store with all that one can do to it."""
    registry = Registry(root, quotas=QUOTAS)
    old, _ = publish(registry, "a", lora_files(1), tags=["live", "v1"])
    new, _ = publish(registry, "a", lora_files(2), tags=["live"], annotations={"who": "me"})
    back, _ = publish(registry, "a", ia3_files(3), tags=["live", "gone"])
    registry.roll_back_tag("a", "live")
    registry.delete_tag("a", "gone")
    publish(registry, "team/b", lora_files(1) | {"README.md": b"hello"}, tags=["v1", "latest"])
    publish(registry, "team/b", lora_files(1))
    publish(registry, "a", lora_files(7))
    age(root, 2 * DAY)
    registry.lease_durably(back.digest, holder="trainer")
    registry.lease([old.digest], holder="server-1")
    registry.collect_garbage()
    derived = registry.publish(
        name="derived",
        tags=[],
        files=upload(registry, lora_files(9)),
        annotations={},
        base=small_base(),
        lineage=Lineage((Parent(old.digest, 0.5), Parent(new.digest, 0.5)), {"op": "linear"}),
    )[0]
    for document in (b"1", b"2", b"1"):
        for subject in (old, derived):
            attach(registry, subject, document)
    registry.view(derived.digest)
    upload(registry, {"adapter_model.safetensors": b"on its way"})
    registry.open_upload(registry.add_files({"x": b"y"})[0]).close()
    registry.close()


def attach(registry: Registry, record: AdapterRecord, document: bytes) -> None:
    kind = f"text/{document.decode()}"
    registry.attach(record.digest, document, artifact_type=kind, file_name="x", annotations={"of": "x"})


def told(root: Path) -> dict[str, Any]:
    """What the registry tells about itself, and changes by telling no more than what it remembers of hashes."""
    registry = Registry(root, quotas=QUOTAS)
    records = list(_pages(registry))
    digests = sorted({record.digest for record in records})
    says: dict[str, Any] = {
        "records": records,
        "by kind": [registry.list(kind=kind, name_contains="a")[0] for kind in ("LORA", "IA3", "NONE")],
        "names": registry.names(),
        "tags": {name: registry.tags(name) for name in registry.names()},
        "history": {name: registry.tag_history(name) for name in registry.names()},
        "leases": registry.leases(),
        "stats": registry.stats(),
        "would collect": [registry.collect_garbage(dry_run=True, grace_seconds=grace) for grace in (0, DAY, 9 * DAY)],
        "fsck": registry.fsck(),
    }
    for digest in digests:
        says[digest] = (
            registry.adapter_record(digest),
            registry.adapter_names(digest),
            [registry.manifest(name, digest) for name in registry.adapter_names(digest)],
            {name: path.read_bytes() for name, path in registry.adapter_files(digest).items()},
            registry.referrers(digest),
            [registry.read_blob(referrer.document.digest).read() for referrer in registry.referrers(digest)],
            registry.children(digest),
        )
    says["refuses"] = [_refusal(refused) for refused in _refused(registry)]
    registry.close()
    return says


def _pages(registry: Registry) -> list[AdapterRecord]:
    records, token = registry.list(page_size=2)
    while token:
        page, token = registry.list(page_size=2, page_token=token)
        records += page
    return records


def _refused(registry: Registry) -> list[Callable[[], object]]:
    return [
        lambda: publish(registry, "a", lora_files(4), tags=["v1"], validate_only=True),
        lambda: publish(registry, "team/c", lora_files(4), validate_only=True),
        lambda: publish(registry, "team/c", lora_files(5), validate_only=True),
        lambda: registry.resolve("a:gone"),
        lambda: registry.roll_back_tag("team/b", "v1"),
    ]


def _refusal(call: Callable[[], object]) -> str:
    try:
        return repr(call())
    except RegistryError as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize(
    ("lost", "exported_at_once"),
    [([".db"], True), ([".db"], False), ([".db", "index.json"], False), (["index.json"], True), (["leases.log"], True)],
)
def test_a_registry_tells_the_same_after_its_index_was_lost(
    tmp_path: Path, lost: list[str], exported_at_once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "store"
    if not exported_at_once:  # nor when it is closed: as a store of thousands whose server was killed
        monkeypatch.setattr(export, "SMALL_ENTRIES", 0)
        monkeypatch.setattr(export.Export, "close", lambda self: None)
        monkeypatch.setattr(export.Export, "_run", lambda self: None)
    with_everything(root)
    shutil.copytree(root, tmp_path / "other")
    before = told(root)
    assert len(before["records"]) >= 5 and len(before["leases"]) == 2 and before["fsck"].is_clean
    assert [refusal.partition(":")[0] for refusal in before["refuses"]][0] == "TagImmutable"
    for name in lost:
        (tmp_path / "other" / name).unlink()
    after = told(tmp_path / "other")
    assert after == before
    registry = Registry(tmp_path / "other")
    check_whole(registry, tmp_path / "other")
    registry.close()
