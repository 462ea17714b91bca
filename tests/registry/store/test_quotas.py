"""What is refused because there is no room for it, and what that leaves behind."""

from pathlib import Path

import pytest
from store_adapters import lora_files, publish, upload
from store_children import check_whole

from hotshoe.registry.errors import AdapterNotFound, QuotaExceeded
from hotshoe.registry.registry import Registry
from hotshoe.registry.store.quotas import Quota


def test_the_first_adapter_above_a_count_is_refused_and_nothing_of_it_is_named(root: Path) -> None:
    registry = Registry(root, quotas={"*": Quota(max_adapters=2)})
    first, _ = publish(registry, "a", lora_files(1), tags=["live"])
    publish(registry, "b", lora_files(1))  # another name for the same bytes counts
    before = (root / "index.json").read_bytes(), (root / "tags.log").read_bytes()
    with pytest.raises(QuotaExceeded, match=r"the store: 2 of at most 2 adapters; .* more for \* in --quotas"):
        publish(registry, "a", lora_files(2), tags=["live"])
    with pytest.raises(QuotaExceeded):
        publish(registry, "a", lora_files(2), validate_only=True)
    assert ((root / "index.json").read_bytes(), (root / "tags.log").read_bytes()) == before
    assert registry.resolve("a:live") == first
    assert publish(registry, "a", lora_files(1), tags=["v1"])[1] is False, "what is there may have more tags"
    registry.collect_garbage(grace_seconds=0)
    registry.delete_tag("a", "live")
    registry.delete_tag("a", "v1")
    registry.collect_garbage(grace_seconds=0)
    publish(registry, "a", lora_files(2), tags=["live"])
    check_whole(registry, root)
    registry.close()


@pytest.mark.parametrize("fits", [True, False])
def test_one_byte_above_a_quota_is_too_much(root: Path, fits: bool) -> None:
    registry = Registry(root)
    size = publish(registry, "team/a", lora_files(1))[0].size_bytes
    registry.close()
    limit = 2 * size if fits else 2 * size - 1
    registry = Registry(root, quotas={"team/": Quota(max_bytes=limit)})
    publish(registry, "team/b", lora_files(1))  # its bytes are there
    publish(registry, "elsewhere", lora_files(3))  # and that is not the team's
    if fits:
        publish(registry, "team/a", lora_files(2), tags=["new"])
    else:
        with pytest.raises(
            QuotaExceeded,
            match=rf"begin with team/: {size} of at most {limit} bytes .* has {size}; .*team/ in --quotas",
        ):
            publish(registry, "team/a", lora_files(2), tags=["new"])
        with pytest.raises(AdapterNotFound):
            registry.resolve("team/a:new")
    registry.close()


def test_every_quota_that_matches_holds(root: Path) -> None:
    registry = Registry(root, quotas={"*": Quota(max_adapters=3), "team/": Quota(max_adapters=1), "team/x": Quota()})
    publish(registry, "team/x", lora_files(1))
    with pytest.raises(QuotaExceeded, match="team/: 1 of at most 1"):
        publish(registry, "team/x", lora_files(2))
    publish(registry, "tea", lora_files(1))
    publish(registry, "other", lora_files(1))
    with pytest.raises(QuotaExceeded, match="the store: 3 of at most 3"):
        publish(registry, "other", lora_files(2))
    registry.close()


def test_a_quota_of_nothing_lets_nothing_in_and_a_negative_one_is_none(root: Path) -> None:
    registry = Registry(root, quotas={"*": Quota(max_bytes=0)})
    upload(registry, lora_files(1))
    with pytest.raises(QuotaExceeded):
        publish(registry, "a", lora_files(1))
    registry.close()
    with pytest.raises(ValueError, match="-1"):
        Quota(max_adapters=-1)
