"""Publishing, resolving, tagging and listing, on a real disk."""

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from store_adapters import CONFIG, WEIGHTS, descriptors, ia3_files, lora_files, publish, small_base, upload

from hotshoe.registry.errors import (
    AdapterNotFound,
    BlobNotFound,
    IncompatibleAdapter,
    InvalidAdapter,
    InvalidReference,
    InvalidUpload,
    RegistryError,
    TagMoved,
)
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.registry import Registry

NOWHERE = f"sha256:{'0' * 64}"


def test_a_published_adapter_is_found_by_tag_by_name_and_by_digest(registry: Registry) -> None:
    files = lora_files() | {"README.md": b"# SQL\n"}
    record, created = publish(registry, "team/sql", files, tags=["latest", "v1"])
    assert created
    assert registry.resolve("team/sql") == registry.resolve("team/sql:v1") == record
    assert registry.resolve(f"team/sql@{record.digest}") == record
    assert (record.kind, record.rank, record.target_modules) == ("LORA", 2, ("q_proj", "v_proj"))
    assert (record.base_model, record.base_digest) == ("org/small", small_base().digest)
    assert record.tags == ("latest", "v1")
    assert record.size_bytes == sum(file.size_bytes for file in record.files)


def test_the_files_of_an_adapter_are_those_published_and_its_card(registry: Registry) -> None:
    files = lora_files() | {"README.md": b"# SQL\n"}
    record, _ = publish(registry, "team/sql", files)
    paths = registry.adapter_files(record.digest)
    card = paths.pop("adapter.card.json")
    assert {name: path.read_bytes() for name, path in paths.items()} == files
    assert json.loads(card.read_bytes())["base"]["digest"] == small_base().digest
    assert all(path.stat().st_mode & 0o222 == 0 for path in (*paths.values(), card))


def test_equal_bytes_have_an_equal_digest_in_every_store_and_under_every_name(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        registry = Registry(tmp_path / name)
        record, _ = publish(registry, f"team/{name}", lora_files(3), tags=[name], annotations={"org.example.by": "me"})
        digests.add((record.digest, *(file.digest for file in record.files)))
        registry.close()
    assert len(digests) == 1


def test_annotations_and_the_base_are_part_of_the_digest(registry: Registry) -> None:
    plain, _ = publish(registry, "a", lora_files())
    annotated, _ = publish(registry, "a", lora_files(), annotations={"org.example.by": "me"})
    elsewhere, _ = publish(registry, "a", lora_files(), base=small_base(digest=NOWHERE))
    assert len({plain.digest, annotated.digest, elsewhere.digest}) == 3
    assert registry.resolve(f"a@{annotated.digest}").annotations["org.example.by"] == "me"


def test_publishing_again_changes_nothing(registry: Registry, root: Path) -> None:
    first, created = publish(registry, "a", lora_files(), tags=["v1"])
    before = _contents(root)
    again, created_again = publish(registry, "a", lora_files(), tags=["v1"])
    assert (created, created_again) == (True, False)
    assert again == first
    assert _contents(root) == before


def test_a_second_name_for_the_same_bytes_is_created_and_shares_them(registry: Registry) -> None:
    first, _ = publish(registry, "a", lora_files(), tags=["v1"])
    blobs = registry.stats().blobs
    second, created = publish(registry, "b", lora_files(), tags=["v2"])
    assert created and second.digest == first.digest
    assert registry.resolve("a:v1").tags == ("v1",) and registry.resolve("b:v2").tags == ("v2",)
    assert registry.stats().blobs == blobs
    with pytest.raises(AdapterNotFound):
        registry.resolve("b:v1")


def test_what_is_not_there_tells_what_the_name_has_instead(registry: Registry) -> None:
    record, _ = publish(registry, "a", lora_files(), tags=["v1", "live"])
    publish(registry, "many", lora_files(), tags=[f"v{number}" for number in range(9)])
    publish(registry, "bare", lora_files(2), tags=[])
    for reference, told in {
        "a": "no adapter a:latest; a has the tags live, v1",
        f"a@{NOWHERE}": f"no adapter a@{NOWHERE}; a has the tags live, v1",
        "many": "no adapter many:latest; many has the tags v0, v1, v2, v3, v4, v5, v6, v7, …",
        "bare:v1": "no adapter bare:v1; bare has no tags",
        "b:v1": "no adapter b:v1: nothing has that name",
    }.items():
        with pytest.raises(AdapterNotFound) as caught:
            registry.resolve(reference)
        assert str(caught.value) == told
    with pytest.raises(AdapterNotFound, match=f"no adapter bare@{record.digest}: a tag points at adapters of its own"):
        registry.update_tag("bare", "v1", record.digest, "")
    with pytest.raises(AdapterNotFound, match="no tag a:v2"):
        registry.delete_tag("a", "v2")


def test_a_digest_alone_means_the_name_it_was_published_by_last(registry: Registry) -> None:
    first, _ = publish(registry, "a", lora_files(), tags=["v1"])
    assert registry.adapter_record(first.digest) == first
    second, _ = publish(registry, "b", lora_files(), tags=["v2"])
    assert registry.adapter_record(first.digest) == second
    registry.delete_tag("b", "v2")
    assert registry.adapter_record(first.digest) == first, "b has no tag for it now"
    with pytest.raises(AdapterNotFound):
        registry.adapter_record(NOWHERE)


def test_publishing_moves_its_tags_unconditionally(registry: Registry) -> None:
    old, _ = publish(registry, "a", lora_files(1), tags=["latest", "stable"])
    new, _ = publish(registry, "a", lora_files(2), tags=["latest"])
    assert registry.resolve("a").digest == new.digest
    assert registry.resolve("a:stable").digest == old.digest
    assert registry.resolve(f"a@{old.digest}").tags == ("stable",)


def test_validate_only_tells_the_record_and_stores_nothing(registry: Registry, root: Path) -> None:
    upload(registry, lora_files())
    before = _contents(root)
    record, created = publish(registry, "a", lora_files(), tags=["v1"], validate_only=True)
    assert not created and _contents(root) == before
    with pytest.raises(AdapterNotFound):
        registry.resolve("a:v1")
    assert publish(registry, "a", lora_files(), tags=["v1"])[0] == record


def test_publishing_without_the_blobs_names_those_to_upload(registry: Registry) -> None:
    files = lora_files()
    upload(registry, {CONFIG: files[CONFIG]})
    with pytest.raises(BlobNotFound) as caught:
        registry.publish(name="a", tags=[], files=descriptors(files), annotations={}, base=small_base())
    assert caught.value.digests == (descriptors(files)[0].digest,)


def test_a_size_that_is_not_the_blobs_is_refused(registry: Registry) -> None:
    blobs = [replace(blob, size_bytes=blob.size_bytes + 1) for blob in upload(registry, lora_files())]
    with pytest.raises(InvalidUpload, match=r"adapter_model\.safetensors: has \d+ bytes, was declared with"):
        registry.publish(name="a", tags=[], files=blobs, annotations={}, base=small_base())


def _renamed(name: str) -> Callable[[list[FileDescriptor]], list[FileDescriptor]]:
    return lambda blobs: [*blobs, replace(blobs[1], file_name=name)]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_renamed("adapter.card.json"), "adapter.card.json"),
        (_renamed("../../etc/passwd"), "../../etc/passwd"),
        (_renamed("adapter_model.bin"), "adapter_model.bin"),
        (_renamed("a\n\x1b[2J"), r"a\n\x1b[2J"),
        (_renamed(""), ""),
        (_renamed(CONFIG), CONFIG),
        (_renamed("adapter.safetensors"), WEIGHTS),  # of PEFT or of AdapterHub
        (_renamed("adapter_interface.json"), "adapter_interface.json"),
        (lambda blobs: blobs[:1], CONFIG),
        (lambda blobs: blobs[1:], WEIGHTS),
        (lambda blobs: [*blobs, FileDescriptor("README.md", blobs[0].digest, (1 << 20) + 1)], "README.md"),
    ],
)
def test_another_set_of_files_is_refused_by_name(
    registry: Registry, change: Callable[[Sequence[FileDescriptor]], list[FileDescriptor]], field: str
) -> None:
    blobs = change(upload(registry, lora_files()))
    with pytest.raises(InvalidAdapter) as caught:
        registry.publish(name="a", tags=[], files=blobs, annotations={}, base=small_base())
    assert caught.value.field == field
    assert registry.list() == ([], "")


@pytest.mark.parametrize(
    "annotations",
    [
        {"": "x"},
        {"a b": "x"},
        {"ключ": "x"},
        {"a\n": "x"},
        {"a": "x\ny"},
        {"a": "x\u202ey"},
        {"a": "\x1b[2J"},
        {"a": "x" * 4096},
        {f"k{i}": "x" * 60 for i in range(80)},
        {"dev.hotshoe.adapter.kind": "IA3"},
        {"dev.hotshoe.adapter.base.digest": "sha256:abc"},
        {"dev.hotshoe.adapter.base.name": "x" * 600},
    ],
)
def test_annotations_out_of_bounds_are_refused(registry: Registry, annotations: dict[str, str]) -> None:
    with pytest.raises(InvalidAdapter) as caught:
        publish(registry, "a", lora_files(), annotations=annotations)
    assert not isinstance(caught.value, IncompatibleAdapter)
    assert registry.list() == ([], "")


def test_an_adapter_for_another_base_is_incompatible(registry: Registry) -> None:
    with pytest.raises(IncompatibleAdapter, match=f"for {NOWHERE}; the base model here, small, is sha256:ba5e"):
        publish(registry, "a", lora_files(), annotations={"dev.hotshoe.adapter.base.digest": NOWHERE})


def test_the_publishers_word_for_the_base_is_kept(registry: Registry) -> None:
    base = small_base()
    own = {"dev.hotshoe.adapter.base.digest": base.digest, "dev.hotshoe.adapter.base.name": "acme/base"}
    record, _ = publish(registry, "a", lora_files(), annotations=own)
    assert record.base_model == "acme/base"


def test_files_that_are_no_adapter_are_refused_and_leave_no_name(registry: Registry) -> None:
    files = lora_files()
    for broken in ({CONFIG: b"{}"}, {WEIGHTS: b""}, {WEIGHTS: files[WEIGHTS][:-1]}, {CONFIG: b"\xff"}):
        with pytest.raises(InvalidAdapter):
            publish(registry, "a", files | broken, tags=["v1"])
    assert registry.list() == ([], "")


@pytest.mark.parametrize("reference", ["a", "a:v2", "b:v1", f"a@{NOWHERE}"])
def test_what_was_never_published_is_not_found(registry: Registry, reference: str) -> None:
    publish(registry, "a", lora_files(), tags=["v1"])
    with pytest.raises(AdapterNotFound):
        registry.resolve(reference)


def test_hostile_text_is_refused_by_every_method(registry: Registry) -> None:
    record, _ = publish(registry, "a", lora_files(), tags=["v1"])
    digest = record.digest
    for bad in ("../x", "a/../../x", "", "A", "a\0", "a\n", "%2e", "x" * 300):
        calls: list[Callable[[], object]] = [
            lambda bad=bad: registry.resolve(bad),
            lambda bad=bad: registry.resolve(f"a@{bad}"),
            lambda bad=bad: registry.update_tag(bad, "v1", digest, ""),
            lambda bad=bad: registry.update_tag("a", f"{bad}/", digest, ""),
            lambda bad=bad: registry.update_tag("a", "v1", bad, ""),
            lambda bad=bad: registry.update_tag("a", "v1", digest, f"{bad}."),
            lambda bad=bad: registry.delete_tag(bad, "v1"),
            lambda bad=bad: registry.delete_tag("a", f"{bad}/"),
            lambda bad=bad: registry.missing_blobs([bad]),
            lambda bad=bad: registry.open_upload(FileDescriptor(WEIGHTS, bad, 1)),
            lambda bad=bad: registry.adapter_files(bad),
            lambda bad=bad: registry.adapter_record(bad),
            lambda bad=bad: registry.read_blob(bad, 0),
            lambda bad=bad: registry.view(bad),
            lambda bad=bad: registry.unview(bad),
            lambda bad=bad: registry.lease([digest, bad], holder="me"),
            lambda bad=bad: registry.roll_back_tag(bad, "v1"),
            lambda bad=bad: registry.roll_back_tag("a", f"{bad}/"),
            lambda bad=bad: registry.tag_history(bad),
            lambda bad=bad: registry.tag_history("a", f"{bad}/"),
            lambda bad=bad: publish(registry, bad, lora_files()),
            lambda bad=bad: publish(registry, "a", lora_files(), tags=[f"{bad}/"]),
        ]
        for call in calls:
            with pytest.raises(InvalidReference):
                call()
    assert registry.resolve("a:v1") == record


def test_update_tag_moves_only_from_where_it_was_expected(registry: Registry) -> None:
    one, _ = publish(registry, "a", lora_files(1), tags=["live"])
    two, _ = publish(registry, "a", lora_files(2))
    with pytest.raises(TagMoved) as caught:
        registry.update_tag("a", "live", two.digest, "")
    assert caught.value.actual == one.digest
    with pytest.raises(TagMoved):
        registry.update_tag("a", "live", two.digest, two.digest)
    with pytest.raises(TagMoved) as caught:
        registry.update_tag("a", "new", two.digest, one.digest)
    assert caught.value.actual is None
    assert registry.update_tag("a", "live", two.digest, one.digest).tags == ("live",)
    assert registry.resolve("a:live").digest == two.digest
    assert registry.update_tag("a", "new", one.digest, "").digest == one.digest


def test_update_tag_wants_an_adapter_of_that_name(registry: Registry) -> None:
    record, _ = publish(registry, "a", lora_files())
    publish(registry, "b", lora_files(1))
    with pytest.raises(AdapterNotFound):
        registry.update_tag("b", "v1", record.digest, "")


def test_a_deleted_tag_leaves_the_adapter_under_its_digest(registry: Registry) -> None:
    record, _ = publish(registry, "a", lora_files(), tags=["v1"])
    registry.delete_tag("a", "v1")
    with pytest.raises(AdapterNotFound):
        registry.resolve("a:v1")
    with pytest.raises(AdapterNotFound):
        registry.delete_tag("a", "v1")
    assert registry.resolve(f"a@{record.digest}").tags == ()
    assert registry.adapter_files(record.digest)


def test_listing_pages_newest_first_and_each_once(registry: Registry) -> None:
    published = [publish(registry, f"team/a{i}", lora_files(i), tags=["v1"])[0] for i in range(7)]
    seen, token = [], ""
    while True:
        page, token = registry.list(page_size=3, page_token=token)
        assert len(page) <= 3
        seen += page
        if not token:
            break
    assert seen == published[::-1]
    assert registry.list() == (published[::-1], "")


def test_pages_hold_still_while_adapters_are_published(registry: Registry) -> None:
    published = [publish(registry, "a", lora_files(i))[0] for i in range(4)]
    first, token = registry.list(page_size=2)
    publish(registry, "a", lora_files(9))
    second, _ = registry.list(page_size=2, page_token=token)
    assert first + second == published[::-1]


def test_listing_filters_by_part_of_the_name_and_by_kind(registry: Registry) -> None:
    lora, _ = publish(registry, "team/sql", lora_files())
    ia3, _ = publish(registry, "team/chat", ia3_files())
    assert registry.list(name_contains="sq")[0] == [lora]
    assert registry.list(kind="IA3")[0] == [ia3]
    assert registry.list(name_contains="team/", kind="LORA")[0] == [lora]
    assert registry.list(name_contains="%")[0] == []


def test_a_page_token_serves_only_the_listing_it_came_from(registry: Registry) -> None:
    for i in range(3):
        publish(registry, "a", lora_files(i))
    _, token = registry.list(page_size=1)
    for bad in ("x", token[:-4], token + "=", "MQ==", "\u0661", token.swapcase()):
        with pytest.raises(InvalidReference, match="page_token"):
            registry.list(page_size=1, page_token=bad)
    with pytest.raises(InvalidReference, match="page_token"):
        registry.list(page_size=1, page_token=token, kind="LORA")
    with pytest.raises(InvalidReference, match="page_size"):
        registry.list(page_size=-1)


def test_a_blob_is_read_from_an_offset(registry: Registry) -> None:
    files = lora_files()
    record, _ = publish(registry, "a", files)
    weights = next(file for file in record.files if file.file_name == WEIGHTS)
    with registry.read_blob(weights.digest, 5) as blob:
        assert blob.read() == files[WEIGHTS][5:]
    with registry.read_blob(weights.digest, weights.size_bytes) as blob:
        assert blob.read() == b""
    for offset in (-1, weights.size_bytes + 1):
        with pytest.raises(InvalidReference, match="offset"):
            registry.read_blob(weights.digest, offset)


def test_only_blobs_of_published_adapters_can_be_read(registry: Registry) -> None:
    (weights, _) = upload(registry, lora_files())
    for digest in (weights.digest, NOWHERE):
        with pytest.raises(AdapterNotFound):
            registry.read_blob(digest, 0)
    record, _ = publish(registry, "a", lora_files())
    for digest in (weights.digest, record.digest):
        registry.read_blob(digest, 0).close()


def test_of_64_threads_that_move_one_tag_exactly_one_wins(registry: Registry) -> None:
    current = publish(registry, "a", lora_files(0), tags=["live"])[0].digest
    digests = [publish(registry, "a", lora_files(i))[0].digest for i in range(1, 9)]
    for _ in range(5):
        targets = [digest for digest in digests if digest != current]
        with ThreadPoolExecutor(64) as pool:
            race = _Race(registry, expected=current, targets=targets)
            winners = [digest for digest in pool.map(race.move, range(64)) if digest]
        assert len(winners) == 1
        current = registry.resolve("a:live").digest
        assert winners == [current]


def test_64_publishers_of_the_same_bytes_store_them_once(registry: Registry, root: Path) -> None:
    files, barrier = lora_files(), threading.Barrier(64)

    def run(i: int) -> tuple[str, bool]:
        barrier.wait()
        blobs = descriptors(files)
        for blob in blobs:  # all of them send, as if each had been told that the blob is missing
            with registry.open_upload(blob) as session:
                session.write(0, files[blob.file_name])
                session.finish()
        record, created = registry.publish(name="a", tags=[f"t{i}"], files=blobs, annotations={}, base=small_base())
        return record.digest, created

    with ThreadPoolExecutor(64) as pool:
        results = list(pool.map(run, range(64)))
    assert len({digest for digest, _ in results}) == 1
    assert sum(created for _, created in results) == 1
    assert len(registry.resolve("a:t0").tags) == 64
    assert registry.stats().blobs == 5 and registry.stats().uploads == 0  # two files, card, config, manifest
    assert list((root / ".tmp").iterdir()) == []
    assert registry.fsck().is_clean


def test_readers_see_only_whole_publications_while_others_publish(registry: Registry) -> None:
    stop, problems = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                record = registry.resolve("a")
                if "latest" not in record.tags or len(registry.adapter_files(record.digest)) != 3:
                    problems.append(record)
            except AdapterNotFound:
                pass
            except RegistryError as error:
                problems.append(error)
            time.sleep(0.002)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for i in range(25):
        publish(registry, "a", lora_files(i), tags=["latest"])
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []


def test_resolving_takes_less_than_a_millisecond(registry: Registry) -> None:
    for i in range(20):
        publish(registry, f"team/a{i}", lora_files(i), tags=["latest", "v1"])
    medians: list[float] = []
    while min(medians, default=1.0) >= 1e-3 and len(medians) < 20:  # others may have the cores for a while
        times = []
        for i in range(400):
            start = time.perf_counter()
            registry.resolve(f"team/a{i % 20}")
            times.append(time.perf_counter() - start)
        medians.append(sorted(times)[len(times) // 2])
    assert min(medians) < 1e-3


class _Race:
    def __init__(self, registry: Registry, *, expected: str, targets: list[str]) -> None:
        self._registry = registry
        self._expected = expected
        self._targets = targets
        self._barrier = threading.Barrier(64)

    def move(self, i: int) -> str | None:
        """The digest that this caller moved the tag to, if it won."""
        target = self._targets[i % len(self._targets)]
        self._barrier.wait()
        try:
            return self._registry.update_tag("a", "live", target, self._expected).digest
        except TagMoved:
            return None


def _contents(root: Path) -> dict[str, bytes]:
    """Everything that is neither a lock nor SQLite's."""
    paths = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".db"))
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}
