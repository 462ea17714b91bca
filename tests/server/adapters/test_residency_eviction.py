"""Who goes when somebody else comes: nothing in use, and everybody makes progress."""

import random
import time
from collections.abc import Callable

import canonical_adapters as canonical
import pytest
from residency_house import WAIT, House, tiers, until
from running_engine import Clock

from hotshoe.server.adapters import claims, load_queue
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.load_queue import LoadQueue
from hotshoe.server.adapters.residency_entry import Phase
from hotshoe.server.adapters.resident import Tier

# Evicting.


def test_the_least_recently_used_idle_adapter_is_evicted(new_house: Callable[..., House]) -> None:
    house = new_house()
    first, second, third = house.digests
    for digest in (first, second, first):
        house.acquire(digest)
        house.residency.release([digest])
    house.acquire(third)
    assert tiers(house) == {first: Tier.DEVICE, second: Tier.HOST, third: Tier.DEVICE}
    assert house.observer.evictions == [(second, "device", "lru")]
    house.residency.release([third])


def test_evict_skips_pinned_and_used_adapters(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=6, adapter_slots=3)
    pinned, used, *others = house.digests
    house.residency.load(pinned, pin=True)
    house.acquire(used)
    for digest in others * 2:
        house.acquire(digest)
        house.residency.release([digest])
    assert tiers(house)[pinned] is Tier.DEVICE and tiers(house)[used] is Tier.DEVICE
    assert not {pinned, used} & {digest for digest, _, _ in house.observer.evictions}
    house.residency.release([used])


def test_a_request_that_waits_for_a_slot_gets_the_one_that_is_released(new_house: Callable[..., House]) -> None:
    house = new_house(adapter_slots=1)
    first, second, _ = house.digests
    house.acquire(first)
    assert house.residency.acquire([second]) is None
    until(lambda: tiers(house).get(second) is Tier.HOST)
    time.sleep(0.05)
    assert house.residency.acquire([second]) is None and tiers(house)[first] is Tier.DEVICE
    house.residency.release([first])
    house.acquire(second)
    house.residency.release([second])


def test_byte_budgets_hold_on_device_and_host(new_house: Callable[..., House]) -> None:
    like_those = canonical.lora(4, targets=("q_proj", "v_proj", "down_proj"))
    packed = AdapterSlots(1, canonical.small_shape()).pack(like_those)
    size = packed.device_bytes
    house = new_house(adapters=6, adapter_slots=6, device_bytes=2 * size, host_bytes=3 * packed.size_bytes)
    for digest in house.digests:
        house.acquire(digest)
        house.residency.release([digest])
        residents = house.residency.residents()
        assert sum(r.size_bytes for r in residents if r.tier is Tier.DEVICE) <= 2 * size
        assert len(residents) <= 3
    assert {tier for _, tier, _ in house.heard().evictions} == {"device", "host"}


def test_an_adapter_that_the_host_cannot_keep_is_served_all_the_same(new_house: Callable[..., House]) -> None:
    house = new_house(host_bytes=1)
    for digest in house.digests * 2:
        house.acquire(digest)
        assert tiers(house)[digest] is Tier.DEVICE
        house.residency.release([digest])
    assert [source for _, source in house.heard().loads] == ["disk"] * 6


def test_what_was_loaded_for_a_request_is_kept_until_it_comes(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotshoe.server.adapters.claims.LEASE_SECONDS", 1000.0)
    house = new_house(adapter_slots=1)
    first, second, _ = house.digests
    assert house.residency.acquire([first]) is None
    assert house.residency.acquire([second]) is None
    until(lambda: tiers(house) == {first: Tier.DEVICE, second: Tier.HOST})
    time.sleep(0.1)
    assert house.residency.acquire([first]) is not None
    house.residency.release([first])
    house.acquire(second)
    house.residency.release([second])


def test_a_request_that_never_comes_back_does_not_keep_its_slot(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotshoe.server.adapters.claims.LEASE_SECONDS", 0.2)
    house = new_house(adapter_slots=1)
    gone, alive, _ = house.digests
    assert house.residency.acquire([gone]) is None
    until(lambda: tiers(house).get(gone) is Tier.DEVICE)
    house.acquire(alive)
    house.residency.release([alive])


def test_a_slot_is_given_though_its_lease_lapses_while_a_loader_looks(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, ask = Clock(), LoadQueue.seconds_until_asking

    def ask_late(queue: LoadQueue, now: float) -> float | None:
        clock.put_forward(2 * claims.LEASE_SECONDS if queue._first(Phase.AWAITING_SLOT) else 0.0)
        return ask(queue, now)

    monkeypatch.setattr(claims, "time", clock)
    monkeypatch.setattr(load_queue, "time", clock)
    monkeypatch.setattr(LoadQueue, "seconds_until_asking", ask_late)
    house = new_house(adapter_slots=1, loader_threads=1)
    gone, alive, _ = house.digests
    assert house.residency.acquire([gone]) is None
    until(lambda: tiers(house).get(gone) is Tier.DEVICE)
    assert house.residency.acquire([alive]) is None
    until(lambda: tiers(house).get(alive) is Tier.DEVICE)


def test_stacks_that_compete_for_all_slots_are_served_one_after_the_other(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=8, adapter_slots=2)
    pairs = [house.digests[i : i + 2] for i in range(0, 8, 2)]
    waiting = {tuple(pair) for pair in pairs}
    deadline = time.monotonic() + WAIT
    while waiting:
        assert time.monotonic() < deadline, "no progress"
        for pair in sorted(waiting):
            if house.residency.acquire(pair) is not None:
                waiting.remove(pair)
                house.residency.release(pair)
        house.changed.wait(0.02)
        house.changed.clear()


@pytest.mark.slow
def test_two_hundred_adapters_over_eight_slots_make_progress(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hotshoe.server.adapters.claims.LEASE_SECONDS", 1000.0)  # all who wait ask again sooner
    house = new_house(adapters=1, adapter_slots=8)
    house.fill_shelf(200)
    waiting, running, served = list(house.digests), [], 0
    random.Random(0).shuffle(waiting)
    for digest in waiting:
        house.residency.prefetch(digest)
    deadline = time.monotonic() + 10 * WAIT
    while waiting or running:
        assert time.monotonic() < deadline, f"{served} of 200 served"
        for digest in list(waiting):
            if house.residency.acquire([digest]) is not None:
                waiting.remove(digest)
                running.append(digest)
        assert len(running) <= 8
        for digest in running:
            house.residency.release([digest])
        served, running = served + len(running), []
        house.changed.wait(0.02)
        house.changed.clear()
    assert served == 200
    assert len(house.heard().loads) < 400, "loads that nobody took"
