"""Versions that stay, aliases that move, and the way back."""

from pathlib import Path

import pytest
from store_adapters import lora_files, publish, upload
from store_children import age, check_whole

from hotshoe.registry.errors import AdapterNotFound, InvalidReference, TagImmutable, TagMoved
from hotshoe.registry.registry import Registry

VERSIONS = ["v1", "v12", "v1.2", "v1.2.3", "1.2.3", "v1.2.3-rc.1", "1.0.0-beta", "v2026.11"]
ALIASES = ["latest", "stable", "canary", "live", "1", "2", "1.2", "v", "version1", "v1a", "v1.2.3.4", "main-v1", "V1"]


@pytest.mark.parametrize("tag", VERSIONS)
def test_a_version_means_the_same_bytes_for_ever(registry: Registry, root: Path, tag: str) -> None:
    first, _ = publish(registry, "a", lora_files(1), tags=[tag, "latest"])
    with pytest.raises(TagImmutable, match=f"a:{tag} is a version and stays at {first.digest}") as caught:
        publish(registry, "a", lora_files(2), tags=["latest", tag])
    assert caught.value.actual == first.digest
    with pytest.raises(AdapterNotFound):  # nothing of a refused publication is there
        registry.resolve(f"a@{publish(registry, 'b', lora_files(2))[0].digest}")
    second, _ = publish(registry, "a", lora_files(2), tags=["latest"])
    with pytest.raises(TagImmutable):
        registry.update_tag("a", tag, second.digest, first.digest)
    with pytest.raises(TagMoved):
        registry.update_tag("a", tag, second.digest, "")
    assert registry.resolve(f"a:{tag}").digest == first.digest
    check_whole(registry, root)


@pytest.mark.parametrize("tag", VERSIONS)
def test_publishing_equal_bytes_under_a_version_again_is_no_move(registry: Registry, tag: str) -> None:
    first, _ = publish(registry, "a", lora_files(1), tags=[tag])
    assert publish(registry, "a", lora_files(1), tags=[tag]) == (first, False)
    assert registry.update_tag("a", tag, first.digest, first.digest) == first


@pytest.mark.parametrize("tag", ALIASES)
def test_an_alias_moves(registry: Registry, tag: str) -> None:
    publish(registry, "a", lora_files(1), tags=[tag])
    second, _ = publish(registry, "a", lora_files(2), tags=[tag])
    assert registry.resolve(f"a:{tag}").digest == second.digest


def test_checking_only_says_that_a_version_is_taken(registry: Registry) -> None:
    publish(registry, "a", lora_files(1), tags=["v1"])
    upload(registry, lora_files(2))
    with pytest.raises(TagImmutable):
        publish(registry, "a", lora_files(2), tags=["v1"], validate_only=True)
    publish(registry, "a", lora_files(1), tags=["v1"], validate_only=True)


def test_a_version_that_was_removed_may_be_given_anew(registry: Registry) -> None:
    publish(registry, "a", lora_files(1), tags=["v1"])
    registry.delete_tag("a", "v1")
    second, _ = publish(registry, "a", lora_files(2), tags=["v1"])
    assert registry.resolve("a:v1") == second


def test_a_store_can_let_versions_move(root: Path) -> None:
    registry = Registry(root, mutable_tags=True)
    publish(registry, "a", lora_files(1), tags=["v1"])
    second, _ = publish(registry, "a", lora_files(2), tags=["v1"])
    assert registry.resolve("a:v1") == second
    registry.close()


def test_rolling_back_goes_where_the_tag_was_and_again_returns(registry: Registry, root: Path) -> None:
    one, two, three = (publish(registry, "a", lora_files(seed), tags=["live"])[0].digest for seed in range(3))
    publish(registry, "a/b", lora_files(9), tags=["live"])
    record, previous = registry.roll_back_tag("a", "live")
    assert (record.digest, previous) == (two, three) and registry.resolve("a:live") == record
    assert registry.roll_back_tag("a", "live")[0].digest == three
    registry.delete_tag("a", "live")
    record, previous = registry.roll_back_tag("a", "live")
    assert (record.digest, previous) == (three, None)
    moves = [(logged.move.old, logged.move.new) for logged in registry.tag_history("a", "live")]
    assert moves == [(None, three), (three, None), (two, three), (three, two), (two, three), (one, two), (None, one)]
    check_whole(registry, root)


def test_what_cannot_be_rolled_back_says_why(registry: Registry, root: Path) -> None:
    first, _ = publish(registry, "a", lora_files(1), tags=["live", "v1"])
    for tag in ("live", "v1"):
        with pytest.raises(AdapterNotFound, match=f"a:{tag} has pointed at {first.digest} only"):
            registry.roll_back_tag("a", tag)
    with pytest.raises(AdapterNotFound, match="no adapter a:other"):
        registry.roll_back_tag("a", "other")
    with pytest.raises(InvalidReference):
        registry.roll_back_tag("a", "../x")
    registry.delete_tag("a", "v1")
    second, _ = publish(registry, "a", lora_files(2), tags=["live"])
    age(root, 1e6)
    registry.collect_garbage()
    with pytest.raises(AdapterNotFound, match=f"a:live pointed at {first.digest} before, which has been collected"):
        registry.roll_back_tag("a", "live")
    assert registry.resolve("a:live") == second


def test_the_history_tells_moves_publications_and_collections_the_latest_first(registry: Registry) -> None:
    one, _ = publish(registry, "a", lora_files(1), tags=["live"])
    publish(registry, "b", lora_files(3), tags=["live"])
    two, _ = publish(registry, "a", lora_files(2), tags=["live"])
    registry.collect_garbage(grace_seconds=0)
    told = [logged.move[1:] for logged in registry.tag_history("a")]
    assert told == [
        (None, one.digest, None),
        ("live", one.digest, two.digest),
        (None, None, two.digest),
        ("live", None, one.digest),
        (None, None, one.digest),
    ]
    history = registry.tag_history("a", limit=2)
    assert [logged.move[1:] for logged in history] == told[:2] and history[0].id > history[1].id
    assert registry.tag_history("nobody") == []
    with pytest.raises(InvalidReference):
        registry.tag_history("A")
