"""Loads that fail: told to all who wait, with the cause, and nothing is left behind."""

import time
from collections.abc import Callable
from pathlib import Path

import canonical_adapters as canonical
import pytest
import torch
from residency_house import House, run_threads, until

from hotshoe.registry.errors import BlobCorrupt, IncompatibleAdapter, InvalidAdapter
from hotshoe.server.adapters import adapter_reader, residency_state
from hotshoe.server.config import ResidencyConfig
from hotshoe.server.errors import AdapterUnusable

# Failing.


def test_a_failed_load_is_told_to_all_who_wait_and_may_be_tried_again(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_state, "RETRY_SECONDS", 1000.0)
    house = new_house()
    digest, real = house.digests[0], house.registry.adapter_files

    def broken(digest: str) -> dict[str, Path]:
        time.sleep(0.05)
        raise BlobCorrupt("bits have rotted")

    monkeypatch.setattr(house.registry, "adapter_files", broken)
    errors: list[AdapterUnusable] = []

    def ask() -> None:
        with pytest.raises(AdapterUnusable, match="bits have rotted") as caught:
            house.acquire(digest)
        errors.append(caught.value)

    run_threads([ask] * 8)
    assert all(isinstance(error.__cause__, BlobCorrupt) for error in errors) and len(errors) == 8
    with pytest.raises(AdapterUnusable):
        house.residency.load(digest)
    until(lambda: bool(house.observer.failures))  # it is told after those who wait
    assert [failed for failed, _ in house.observer.failures] == [digest]
    assert house.residency.residents() == []
    monkeypatch.setattr(house.registry, "adapter_files", real)
    with pytest.raises(AdapterUnusable):
        house.residency.acquire([digest])
    monkeypatch.setattr(residency_state, "RETRY_SECONDS", 0.0)
    house.acquire(digest)
    house.residency.release([digest])


def test_an_unknown_digest_is_unusable(new_house: Callable[..., House]) -> None:
    house = new_house()
    for digest in ("sha256:" + "0" * 64, "nonsense"):
        with pytest.raises(AdapterUnusable, match=digest):
            house.acquire(digest)


def test_a_base_that_differs_is_refused_unless_allowed(
    new_house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    other = canonical.small_shape(digest="sha256:" + "1" * 64)
    house = new_house()
    strict = house.new_residency(other)
    with pytest.raises(AdapterUnusable, match="published for sha256:ba5e") as caught:
        strict.load(house.digests[0])
    assert isinstance(caught.value.__cause__, IncompatibleAdapter)
    strict.close()
    house.config = ResidencyConfig(adapter_slots=2, allow_other_base=True)
    lenient = house.new_residency(other)
    lenient.load(house.digests[0])
    assert "was published for base sha256:ba5e" in caplog.text
    lenient.unload(house.digests[0])
    lenient.close()


def test_limits_of_rank_and_size_hold(new_house: Callable[..., House]) -> None:
    for limits, named in (({"max_rank": 3}, "rank 4"), ({"max_adapter_bytes": 100}, "expected at most 100")):
        house = new_house(**limits)
        with pytest.raises(AdapterUnusable, match=named) as caught:
            house.residency.load(house.digests[0])
        assert isinstance(caught.value.__cause__, InvalidAdapter)
    house = new_house(device_bytes=1000)
    with pytest.raises(AdapterUnusable, match="of the device's 1000"):
        house.residency.load(house.digests[0])
    assert house.residency.residents() == []


def test_numbers_that_overflow_in_lowering_are_refused(new_house: Callable[..., House]) -> None:
    house = new_house()
    with pytest.raises(InvalidAdapter, match="finite"):
        adapter_reader.check_finite(canonical.poisoned())
    for adapter in (canonical.lora(), canonical.ia3(), canonical.prefix(), canonical.prompt()):
        adapter_reader.check_finite(adapter)
    lowered = canonical.lora()
    next(lowered.tensors())[0, 0] = torch.inf
    with pytest.raises(InvalidAdapter):
        adapter_reader.check_finite(lowered)
    assert house.residency.residents() == []


def test_a_device_that_cannot_take_an_adapter_leaves_nothing_behind(
    new_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch
) -> None:
    house = new_house()

    def full(slot: int, adapter: object, **_: object) -> None:
        raise MemoryError("out of memory")

    monkeypatch.setattr(house.slots, "place_packed", full)
    with pytest.raises(AdapterUnusable, match="out of memory"):
        house.acquire(house.digests[0])
    house.residency.check_integrity()
    assert house.residency.residents() == []
    monkeypatch.undo()
    house.acquire(house.digests[1])
    house.residency.release(house.digests[1:2])


def test_observers_and_listeners_that_raise_do_not_stop_loads(new_house: Callable[..., House]) -> None:
    house = new_house()

    def raising(*args: object) -> None:
        raise RuntimeError("planted")

    house.observer.loaded = raising  # type: ignore[method-assign]
    house.residency.on_change = raising
    for digest in house.digests:
        assert house.residency.load(digest).digest == digest


def test_releasing_more_than_was_acquired_is_an_error(new_house: Callable[..., House]) -> None:
    house = new_house()
    with pytest.raises(AssertionError, match="more often"):
        house.residency.release(house.digests[:1])
    house.acquire(house.digests[0])
    house.residency.release(house.digests[:1])
    with pytest.raises(AssertionError, match="more often"):
        house.residency.release(house.digests[:1])
