"""The tasks of one adapter in memory: a slot each, one lease for all, and kept apart in whatever is cached."""

from collections.abc import Callable
from pathlib import Path

import canonical_adapters as canonical
import pytest
import torch
from adapter_files import poly_bytes
from residency_house import House, Weights, leased, until
from store_adapters import publish

from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.server.adapters.adapter_batch import AdapterSegment
from hotshoe.server.adapters.adapter_key import adapter_key, digest_of, is_part_of, task_of
from hotshoe.server.adapters.resident import Tier
from hotshoe.server.errors import AdapterUnusable


def skilled(house: House) -> str:
    """The digest of an adapter of three tasks, in the house's registry."""
    return publish(house.registry, "skilled", poly_bytes(house.base), base=house.base)[0].digest


def test_a_key_says_which_adapter_and_which_task_it_is_of() -> None:
    keys = [adapter_key("sha256:ab"), adapter_key("sha256:ab", 0), adapter_key("sha256:ab", 12)]
    assert len(set(keys)) == 3
    assert {digest_of(key) for key in keys} == {"sha256:ab"}
    assert [task_of(key) for key in keys] == [None, 0, 12]
    assert [is_part_of(key, keys[0]) for key in keys] == [True] * 3
    assert [is_part_of(key, keys[1]) for key in keys] == [False, True, False]


def test_each_task_has_a_slot_of_its_own_with_its_own_factors(new_house: Callable[..., House]) -> None:
    house = new_house(adapter_slots=4)
    digest = skilled(house)
    keys = [adapter_key(digest, task) for task in range(3)]
    slots = house.acquire(*keys, house.digests[0])
    assert len(set(slots)) == 4
    x = torch.randn(1, canonical.HIDDEN)
    for slot, task in zip(slots, range(3), strict=False):
        batch = house.slots.batch([AdapterSegment(0, 1, ((slot, 1.0),))], 1)
        assert batch is not None
        y = torch.zeros(1, canonical.HIDDEN + 2 * canonical.KV_WIDTH)
        batch.add_delta(1, "qkv", x, y)
        lowered = lower_adapter(house.registry.adapter_files(digest), Weights(house.base), task=task)
        linear = lowered.linears[LinearId(1, "q_proj")]
        assert linear.a is not None and linear.b is not None
        assert torch.allclose(y[:, : canonical.HIDDEN], x @ linear.a.T @ linear.b.T, rtol=1e-4, atol=1e-5)
    assert {(info.digest, info.task) for info in house.residency.residents()} == {
        *((digest, task) for task in range(3)),
        (house.digests[0], None),
    }
    house.residency.release([*keys, house.digests[0]])


def test_one_lease_holds_an_adapter_while_any_of_its_tasks_is_in_memory(
    new_house: Callable[..., House], tmp_path: Path
) -> None:
    house = new_house()
    digest = skilled(house)
    [root] = [path.parent for path in tmp_path.rglob("oci-layout")]
    for task in range(2):
        house.residency.load(adapter_key(digest, task), tier=Tier.HOST)
    house.residency.unload(adapter_key(digest, 0))
    until(lambda: [info.task for info in house.residency.residents()] == [1])
    assert leased(root) == {digest}
    assert house.registry.collect_garbage(grace_seconds=0).adapters  # the others
    assert house.registry.adapter_files(digest)
    house.residency.unload(digest)
    until(lambda: leased(root) == set())
    assert not house.residency.residents()


def test_a_quarantined_task_leaves_the_others_alone_until_the_adapter_is_unloaded(
    new_house: Callable[..., House],
) -> None:
    house = new_house()
    digest = skilled(house)
    house.residency.quarantine(adapter_key(digest, 0), "it spoils answers")
    house.residency.load(adapter_key(digest, 1))
    for unloaded in (adapter_key(digest, 1), house.digests[0]):
        house.residency.unload(unloaded)
        with pytest.raises(AdapterUnusable, match="it spoils answers"):
            house.residency.load(adapter_key(digest, 0))
    house.residency.unload(digest)
    house.residency.load(adapter_key(digest, 0))
