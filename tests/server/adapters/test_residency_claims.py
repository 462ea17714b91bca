"""Places in the line for the device: one for each stack, so that nobody waits for who waits for him."""

import time
from collections.abc import Callable, Iterable

import pytest
from residency_house import WAIT, House, tiers, until

from hotshoe.server.adapters import claims as claims_module
from hotshoe.server.adapters.claims import Claims
from hotshoe.server.adapters.load_queue import ASK_SECONDS
from hotshoe.server.adapters.resident import Tier
from hotshoe.server.errors import AdapterSlotsFull, AdapterUnusable


def serve(house: House, stacks: Iterable[list[str]], *, seconds: float = WAIT) -> int:
    """As the engine does: tries all that wait after every change; gives how often it tried."""
    waiting, rounds = list(stacks), 0
    deadline = time.monotonic() + seconds
    while waiting:
        assert time.monotonic() < deadline, f"no progress: {len(waiting)} stacks wait"
        rounds += 1
        for stack in list(waiting):
            if house.residency.acquire(stack) is not None:
                house.residency.release(stack)
                waiting.remove(stack)
        house.changed.wait(0.02)
        house.changed.clear()
    return rounds


def test_stacks_that_overlap_in_a_ring_do_not_wait_for_each_other(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=6, adapter_slots=3)
    one, two, three, four, five, six = house.digests
    serve(house, [[one], [three], [five]])  # of each stack, two are on the device
    assert serve(house, [[one, two, three], [three, four, five], [five, six, one]]) >= 1


def test_stacks_that_overlap_share_what_pins_leave(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=7, adapter_slots=4)
    one, two, three, four, five, six, pinned = house.digests
    house.residency.load(pinned, pin=True)
    serve(house, [[one], [three], [five]])
    assert serve(house, [[one, two, three], [three, four, five], [five, six, one]]) >= 1
    house.residency.unload(pinned)


def test_stacks_that_overlap_share_what_the_bytes_leave(new_house: Callable[..., House]) -> None:
    probe = new_house(adapters=1)
    size = probe.residency.load(probe.digests[0]).size_bytes
    house = new_house(adapters=6, adapter_slots=6, device_bytes=3 * size)
    one, two, three, four, five, six = house.digests
    serve(house, [[one], [three], [five]])
    assert serve(house, [[one, two, three], [three, four, five], [five, six, one]]) >= 1


def test_waiting_for_a_slot_wakes_nobody_over_and_over(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "LEASE_SECONDS", 1000.0)  # none lapses before it is renewed
    house = new_house(adapters=4, adapter_slots=3)
    busy, pinned, *stack = house.digests
    house.residency.load(pinned, pin=True)
    house.acquire(busy)
    calls: list[float] = []
    house.residency.on_change = lambda: calls.append(time.monotonic())
    house.residency.acquire(stack)
    until(lambda: sorted(tiers(house).values()) == [Tier.DEVICE] * 3 + [Tier.HOST])
    began, before = time.monotonic(), len(calls)
    for asked in range(1, 4):
        until(lambda asked=asked: len(calls) >= before + asked)
        assert house.residency.acquire(stack) is None
    most = 3 + (time.monotonic() - began) / ASK_SECONDS  # two are of the loads that ended
    assert len(calls) - before <= most, "the lease is renewed every half second, and that is all"
    house.residency.release([busy])
    house.acquire(*stack)
    house.residency.release(stack)


def test_a_pin_that_leaves_too_little_is_told_to_who_waits(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=3, adapter_slots=2)
    busy, late, other = house.digests
    house.acquire(busy)
    serve(house, [[late]])
    assert house.residency.acquire([other, late]) is None
    house.changed.clear()
    house.residency.load(busy, pin=True)
    assert house.changed.wait(WAIT), "who waits asks again"
    with pytest.raises(AdapterSlotsFull, match="1 are not pinned"):
        house.residency.acquire([other, late])
    house.residency.release([busy])
    house.residency.unload(busy)


def test_prefetching_drives_nothing_from_the_device(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=6, adapter_slots=2)
    serve(house, [[digest] for digest in house.digests[:2]])
    for digest in house.digests[2:]:
        house.residency.prefetch(digest)
    until(lambda: len(house.residency.residents()) == 6)
    assert {digest for digest, tier in tiers(house).items() if tier is Tier.DEVICE} == set(house.digests[:2])
    assert house.observer.evictions == []


def test_the_first_in_line_keeps_its_place_while_its_lease_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "LEASE_SECONDS", 1000.0)
    claims = Claims()
    assert claims.renew(["a", "b"]) and claims.renew(["b", "c"]) and not claims.renew(["b", "a"])
    assert [claims.order_of(digest) for digest in "abc"] == [0, 0, 1]
    now = time.monotonic()
    assert claims.kept_from(0, now) == {"a", "b"} and claims.kept_from(1, now) == {"a", "b", "c"}
    lapsed = now + 2000.0
    assert claims.kept_from(1, lapsed) == {"b", "c"} and claims.leased(lapsed) == set()
    claims.drop(["a", "b"])
    assert claims.order_of("b") == 1 and claims.leased(now) == {"b", "c"}


def test_an_adapter_in_quarantine_is_refused_until_it_is_unloaded(new_house: Callable[..., House]) -> None:
    house = new_house()
    bad, good, _ = house.digests
    house.acquire(bad)
    house.residency.quarantine(bad, "it gave numbers that are not finite")
    for ask in (
        lambda: house.residency.acquire([good, bad]),
        lambda: house.residency.acquire([bad]),
        lambda: house.residency.load(bad),
    ):
        with pytest.raises(AdapterUnusable, match=f"{bad}: it gave numbers that are not finite"):
            ask()
    house.residency.prefetch(bad)
    house.acquire(good)
    house.residency.release([good, bad])
    serve(house, [[digest] for digest in house.digests[1:] * 2])
    assert tiers(house)[bad] is Tier.HOST, "evicted from the device"
    with pytest.raises(AdapterUnusable):
        house.residency.acquire([bad])
    assert house.residency.unload(bad).found
    house.acquire(bad)
    house.residency.release([bad])
