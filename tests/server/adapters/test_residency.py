"""Adapters on demand: one load for all who wait, pins, unloading, and many threads at once."""

import itertools
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import canonical_adapters as canonical
import pytest
import torch
from adapter_files import prefix_bytes
from residency_house import WAIT, House, Weights, run_threads, tiers, until
from store_adapters import publish

from hotshoe.registry.formats.base import LinearId
from hotshoe.server.adapters import one_core, residency
from hotshoe.server.adapters.resident import LoadProgress, LoadStage, Tier
from hotshoe.server.errors import AdapterSlotsFull, AdapterUnusable, Draining

# Loading.


def test_a_cold_adapter_is_loaded_once_and_then_found(new_house: Callable[..., House]) -> None:
    house = new_house()
    digest = house.digests[0]
    assert house.residency.acquire([digest]) is None
    (slot,) = house.acquire(digest)
    batch_slot_bytes = house.slots.slot_bytes(slot)
    assert house.acquire(digest) == (slot,)
    (resident,) = house.residency.residents()
    assert (resident.name, resident.kind, resident.tier) == ("adapter-0", "LORA", Tier.DEVICE)
    assert resident.running == 2 and not resident.pinned and resident.size_bytes == batch_slot_bytes
    assert abs(resident.last_use - time.time()) < 60
    assert 0 < house.residency.adapter_load_seconds(digest) < WAIT
    house.residency.release([digest, digest])
    observer = house.heard()
    assert observer.loads == [(digest, "disk")]
    assert observer.stages == [{"verify", "lower", "place"}]
    assert observer.lookups == [False, True]


def test_what_is_placed_is_what_was_published(new_house: Callable[..., House]) -> None:
    from hotshoe.registry.formats.lowering import lower_adapter
    from hotshoe.server.adapters.adapter_batch import AdapterSegment

    house = new_house()
    slots = house.acquire(*house.digests[:2])
    x = torch.randn(1, canonical.HIDDEN)
    for slot, digest in zip(slots, house.digests, strict=False):
        batch = house.slots.batch([AdapterSegment(0, 1, ((slot, 1.0),))], 1)
        assert batch is not None
        y = torch.zeros(1, canonical.HIDDEN + 2 * canonical.KV_WIDTH)
        batch.add_delta(1, "qkv", x, y)
        linear = lower_adapter(house.registry.adapter_files(digest), Weights(house.base)).linears[LinearId(1, "q_proj")]
        assert linear.a is not None and linear.b is not None
        assert torch.allclose(y[:, : canonical.HIDDEN], x @ linear.a.T @ linear.b.T, atol=1e-5)
    house.residency.release(house.digests[:2])


def test_a_herd_on_one_cold_adapter_makes_one_load(new_house: Callable[..., House]) -> None:
    house, got = new_house(), []
    barrier = threading.Barrier(64)

    def one_of_many() -> None:
        barrier.wait()
        got.append(house.acquire(house.digests[0]))

    run_threads([one_of_many] * 64)
    assert len(got) == 64 and len(set(got)) == 1
    assert house.residency.residents()[0].running == 64
    house.residency.release(house.digests[:1] * 64)
    assert len(house.heard().loads) == 1


def test_loads_of_one_adapter_by_many_callers_are_one(new_house: Callable[..., House]) -> None:
    house = new_house()
    run_threads([lambda: house.residency.load(house.digests[0])] * 16)
    assert len(house.heard().loads) == 1


def test_prefetching_brings_an_adapter_before_it_is_asked_for(new_house: Callable[..., House]) -> None:
    house = new_house()
    house.residency.prefetch(house.digests[0])
    until(lambda: tiers(house) == {house.digests[0]: Tier.DEVICE})
    assert house.residency.acquire(house.digests[:1]) is not None
    house.residency.release(house.digests[:1])


def test_progress_goes_through_the_stages_and_ends_ready(new_house: Callable[..., House]) -> None:
    house = new_house()
    seen: list[LoadProgress] = []
    info = house.residency.load(house.digests[0], progress=seen.append)
    stages = [progress.stage for progress in seen]
    assert stages == sorted(set(stages), key=list(LoadStage).index) and stages[-1] is LoadStage.READY
    assert [progress.adapter for progress in seen] == [*[None] * (len(seen) - 1), info]
    size = house.registry.adapter_record(house.digests[0]).size_bytes
    assert (seen[-1].completed_bytes, seen[-1].total_bytes) == (size, size)
    house.residency.load(house.digests[0], progress=seen.append)
    assert seen[-1].stage is LoadStage.READY


def test_an_adapter_may_be_brought_to_the_host_only(new_house: Callable[..., House]) -> None:
    house = new_house(loader_threads=1)
    info = house.residency.load(house.digests[0], tier=Tier.HOST)
    assert info.tier is Tier.HOST and info.size_bytes > 0
    house.acquire(house.digests[0])
    house.residency.release(house.digests[:1])
    with pytest.raises(ValueError, match="tier"):
        house.residency.load(house.digests[0], tier=Tier.DISK)
    assert house.heard().loads == [(house.digests[0], "disk"), (house.digests[0], "host")]


def test_a_stack_takes_all_its_slots_or_none(new_house: Callable[..., House]) -> None:
    house = new_house()
    house.acquire(house.digests[0])
    assert house.residency.acquire(house.digests[:2]) is None
    assert [resident.running for resident in house.residency.residents()] == [1]
    assert len(set(house.acquire(*house.digests[:2]))) == 2
    house.residency.release([house.digests[0], *house.digests[:2]])


def test_soft_prompts_lie_in_slots_too(new_house: Callable[..., House]) -> None:
    house = new_house()
    record, _ = publish(house.registry, "prefix", prefix_bytes(house.base, length=5), base=house.base)
    (slot,) = house.acquire(record.digest)
    prefix = house.slots.sequence_terms(slot).kv_prefix
    assert prefix is not None and prefix.length == 5
    house.residency.release([record.digest])


# Pinning and unloading.


def test_pinned_adapters_stay_until_they_are_unloaded(new_house: Callable[..., House]) -> None:
    house = new_house(adapter_slots=1)
    pinned, other, _ = house.digests
    assert house.residency.load(pinned, pin=True).pinned
    with pytest.raises(AdapterSlotsFull, match="0 are not pinned"):
        house.residency.acquire([other])
    with pytest.raises(AdapterSlotsFull):
        house.residency.load(other)
    assert house.residency.unload(pinned) == (True, False)
    assert house.residency.residents() == []
    assert house.observer.evictions == [(pinned, "device", "unload")]
    house.acquire(other)
    house.residency.release([other])


def test_an_adapter_that_is_unloaded_in_use_goes_with_its_last_request(new_house: Callable[..., House]) -> None:
    house = new_house()
    digest = house.digests[0]
    (slot,) = house.acquire(digest)
    house.acquire(digest)
    assert house.residency.unload(digest) == (True, True)
    house.residency.release([digest])
    assert tiers(house) == {digest: Tier.DEVICE} and house.slots.slot_bytes(slot)
    house.residency.release([digest])
    assert house.residency.residents() == [] and not house.slots.slot_bytes(slot)


def test_an_adapter_that_is_unloaded_just_as_its_load_ends_goes(new_house: Callable[..., House]) -> None:
    house = new_house()
    digest = house.digests[0]
    unloaded = []

    def progress(step: LoadProgress) -> None:
        if step.stage is LoadStage.READY:
            unloaded.append(house.residency.unload(digest))

    house.residency.load(digest, pin=True, progress=progress)
    assert unloaded == [(True, True)] and house.residency.residents() == []


def test_unloading_what_is_not_here_does_nothing(new_house: Callable[..., House]) -> None:
    house = new_house()
    for digest in (house.digests[0], "sha256:" + "0" * 64):
        assert house.residency.unload(digest) == (False, False)
    assert house.residency.residents() == []


def test_an_adapter_pinned_to_the_host_survives_its_budget(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=4, adapter_slots=1, host_bytes=20_000)  # two of them
    house.residency.load(house.digests[0], tier=Tier.HOST, pin=True)
    for digest in house.digests[1:]:
        house.acquire(digest)
        house.residency.release([digest])
    assert tiers(house)[house.digests[0]] is Tier.HOST
    house.residency.unload(house.digests[0])


def test_a_load_that_waits_for_a_slot_gives_up_in_time(new_house: Callable[..., House]) -> None:
    house = new_house(adapter_slots=1)
    house.acquire(house.digests[0])
    house.residency.load(house.digests[1], tier=Tier.HOST)  # else it might not have been read in time either
    with pytest.raises(AdapterSlotsFull, match="no adapter slot became free in time"):
        house.residency.load(house.digests[1], timeout_seconds=0.2)
    house.residency.release(house.digests[:1])


# At large.


def test_after_close_nothing_is_loaded_and_nobody_waits(new_house: Callable[..., House]) -> None:
    house = new_house(adapter_slots=1)
    house.acquire(house.digests[0])
    outcomes: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(Draining) as caught:
            house.residency.load(house.digests[1])
        outcomes.append(caught.value)

    waiter = threading.Thread(target=wait)
    waiter.start()
    until(lambda: tiers(house).get(house.digests[1]) is Tier.HOST)
    house.residency.close()
    waiter.join(WAIT)
    assert len(outcomes) == 1
    with pytest.raises(Draining):
        house.residency.acquire([house.digests[2]])
    house.residency.prefetch(house.digests[2])
    house.residency.release(house.digests[:1])


def test_acquire_and_release_do_not_wait_for_files(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = new_house(adapters=3, adapter_slots=3)
    real, may_go = house.registry.adapter_files, threading.Event()
    house.acquire(house.digests[0])

    asked: list[str] = []

    def stuck(digest: str) -> dict[str, Path]:
        asked.append(digest)
        assert may_go.wait(10 * WAIT)
        return real(digest)

    monkeypatch.setattr(house.registry, "adapter_files", stuck)
    assert house.residency.acquire(house.digests[1:]) is None
    until(lambda: bool(asked))
    for _ in range(200):
        assert house.residency.acquire(house.digests[:1]) is not None
        assert house.residency.acquire(house.digests[1:]) is None
        house.residency.release(house.digests[:1])
    assert tiers(house) == {house.digests[0]: Tier.DEVICE}, "the files are still waited for"
    may_go.set()
    house.acquire(*house.digests[1:])
    house.residency.release(house.digests)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="this system has no such policy")
@pytest.mark.parametrize("in_a_hurry", ["a request", "it takes long"])
def test_a_load_runs_on_idle_cores_until_somebody_is_in_a_hurry(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch, in_a_hurry: str
) -> None:
    house = new_house(adapters=2, loader_threads=1)
    real, reached, may_go = house.registry.adapter_files, threading.Event(), threading.Event()

    def stuck(digest: str) -> dict[str, Path]:
        reached.set()
        assert may_go.wait(10 * WAIT)
        return real(digest)

    monkeypatch.setattr(house.registry, "adapter_files", stuck)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(residency, "PATIENCE_SECONDS", 10 * WAIT if in_a_hurry == "a request" else 0.05)
    [loader] = house.residency._loaders._threads
    assert loader.native_id is not None
    waiter = threading.Thread(target=lambda: house.residency.load(house.digests[0]))
    waiter.start()
    assert reached.wait(WAIT)
    if in_a_hurry == "a request":
        # Not at once where every core is busy: until it has come to wait, it may have been let into the others' queue.
        idle = os.SCHED_IDLE if one_core._may_come_back() else os.SCHED_BATCH
        until(lambda: os.sched_getscheduler(loader.native_id or 0) == idle)
        assert house.residency.acquire(house.digests[:1]) is None
        assert os.sched_getscheduler(loader.native_id) == os.SCHED_BATCH
    until(lambda: os.sched_getscheduler(loader.native_id or 0) == os.SCHED_BATCH)
    may_go.set()
    waiter.join(WAIT)
    house.residency.load(house.digests[1])
    until(lambda: os.sched_getscheduler(loader.native_id or 0) == os.SCHED_BATCH)


def test_a_storm_of_everything_leaves_no_reference_and_no_byte(new_house: Callable[..., House]) -> None:
    """16 threads acquire, release, load, pin, unload and prefetch 12 adapters over 4 slots and a tight host."""
    host_bytes = 50_000  # five of them
    house = new_house(adapters=12, adapter_slots=4, host_bytes=host_bytes, loader_threads=3)
    residency, served = house.residency, [0] * 16

    def storm(number: int) -> None:
        draw, deadline = random.Random(number), time.monotonic() + WAIT
        for turn in itertools.count():
            if turn >= 200 and (served[number] or time.monotonic() > deadline):  # loaders may be slower than all turns
                return
            digest, action = draw.choice(house.digests), draw.random()
            stack = [digest] if draw.random() < 0.8 else draw.sample(house.digests, 2)
            if action < 0.7:
                if residency.acquire(stack) is not None:
                    served[number] += 1
                    if draw.random() < 0.3:
                        time.sleep(0.001)
                    residency.release(stack)
            elif action < 0.8:
                residency.prefetch(digest)
            elif action < 0.9:
                residency.unload(digest)
            elif action < 0.95:
                residency.check_integrity()
            else:
                try:
                    residency.load(digest, tier=draw.choice((Tier.HOST, Tier.DEVICE)), timeout_seconds=0.05)
                except (AdapterSlotsFull, AdapterUnusable):
                    pass
            time.sleep(0.0002)

    run_threads([lambda number=number: storm(number) for number in range(16)])
    residency.check_integrity()
    assert all(served)
    assert sum(resident.running for resident in residency.residents()) == 0
    assert not house.observer.failures
    for digest in house.digests:
        house.acquire(digest)
        residency.release([digest])
        residency.unload(digest)
    until(lambda: not residency.residents())
    assert all(house.slots.slot_bytes(slot) == 0 for slot in range(4))
    residency.check_integrity()


def test_two_thousand_adapters_lie_on_the_host_and_any_of_them_is_served(new_house: Callable[..., House]) -> None:
    house = new_house(adapters=1, adapter_slots=8, rank=1)
    house.fill_shelf(2000)
    residency = house.residency
    for digest in house.digests:
        residency.prefetch(digest)
    until(lambda: len(residency.residents()) == 2000, seconds=10 * WAIT)
    until(lambda: len(house.observer.loads) >= 2000)
    assert len(house.observer.loads) == 2000, "each is read once"
    weights = [1 / rank for rank in range(1, 2001)]
    for digest in random.Random(5).choices(house.digests, weights, k=300):
        house.acquire(digest)
        residency.release([digest])
    assert {source for _, source in house.observer.loads[2000:]} == {"host"}
    assert {tier for _, tier, _ in house.observer.evictions} == {"device"}, "the slots are few, the host is large"
    assert len(residency.residents()) == 2000
    residency.check_integrity()
