"""Diagnoses give way to what decodes, and end when nobody wants them any more."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from peft_adapters import adapter_files, write_lora
from store_adapters import publish
from tiny_models import TARGETS, ModelWeights, tiny_llama

from hotshoe.registry.registry import Registry
from hotshoe.registry.validation import AdapterLimits
from hotshoe.server.adapters import loader_pace
from hotshoe.server.adapters.loader_pace import LoaderPace
from hotshoe.server.adapters.one_core import let_others_first
from hotshoe.server.model.spectra import Spectra
from hotshoe.server.services import paced_work
from hotshoe.server.services.doctor import Doctor
from hotshoe.server.services.paced_work import PacedWork

FOREVER_SHARE = 1e-7  # half a millisecond of work costs more than an hour
WAIT = 100.0  # seconds, for what takes a fraction of one


@pytest.fixture
def pace() -> LoaderPace:
    return LoaderPace(FOREVER_SHARE)


class Clock:
    """A pace's `time`. What is worked costs a thousand times as much: a fast machine too has something to pay for."""

    def __init__(self) -> None:
        self.asleep = threading.Event()

    def monotonic(self) -> float:
        return time.monotonic()

    def thread_time(self) -> float:
        return 1000 * time.thread_time()

    def sleep(self, seconds: float) -> None:
        self.asleep.set()
        time.sleep(seconds)


class HeldBack(ThreadPoolExecutor):
    """One thread, which does what it is asked once it is free."""

    def __init__(self) -> None:
        super().__init__(1)
        self.asked, self.free = threading.Event(), threading.Event()

    def submit(self, work, *arguments):
        self.asked.set()
        return super().submit(lambda: self.free.wait(WAIT) and work(*arguments))


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loader_pace, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def begun(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts the pieces of work that threads of a doctor have begun."""
    begin, begun = PacedWork.begin, threading.Semaphore(0)

    def begin_and_say_so(*args, **options):
        pause = begin(*args, **options)
        begun.release()
        return pause

    monkeypatch.setattr(PacedWork, "begin", begin_and_say_so)
    # Long work has only idle cores otherwise, and a busy machine may have none.
    monkeypatch.setattr(paced_work, "run_when_idle", let_others_first)
    return begun


async def happens(wait: Callable[..., bool]) -> None:
    assert await asyncio.to_thread(wait, timeout=WAIT)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with Registry(tmp_path / "registry") as registry:
        yield registry


@pytest.fixture
def with_doctor(
    pace: LoaderPace, tmp_path: Path, registry: Registry
) -> Callable[[Callable[[Doctor], Awaitable[None]]], None]:
    base = ModelWeights(tiny_llama())

    def run(test: Callable[[Doctor], Awaitable[None]]) -> None:
        async def within() -> None:
            spectra = Spectra(tmp_path / "bases", base)
            doctor = Doctor(registry=registry, base=base, spectra=spectra, limits=AdapterLimits(), pace=pace)
            try:
                await test(doctor)
            finally:
                await doctor.close()

        asyncio.run(within())

    return run


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return adapter_files(write_lora(tmp_path / "adapter", tiny_llama(), targets=TARGETS, rank=16))


def test_a_diagnosis_waits_while_requests_decode_and_goes_on_when_they_do_not(
    with_doctor, pace: LoaderPace, files: dict[str, Path], clock: Clock
) -> None:
    async def test(doctor: Doctor) -> None:
        assert len((await doctor.diagnose(files)).linears) == 14
        pace.set_decoding(True)
        waiting = asyncio.create_task(doctor.diagnose(files, exact=True))
        await happens(clock.asleep.wait)
        assert not waiting.done()
        pace.set_decoding(False)
        assert (await asyncio.wait_for(waiting, WAIT)).is_exact

    with_doctor(test)


def test_a_diagnosis_that_is_given_up_makes_room_for_the_next(
    with_doctor, pace: LoaderPace, files: dict[str, Path], begun: threading.Semaphore
) -> None:
    async def test(doctor: Doctor) -> None:
        pace.set_decoding(True)
        first = asyncio.create_task(doctor.diagnose(files, exact=True))
        await happens(begun.acquire)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        second = asyncio.create_task(doctor.diagnose(files, exact=True))
        await happens(begun.acquire)
        pace.set_decoding(False)
        assert (await asyncio.wait_for(second, WAIT)).is_exact

    with_doctor(test)


def test_closing_ends_what_waits(
    with_doctor, pace: LoaderPace, files: dict[str, Path], begun: threading.Semaphore
) -> None:
    async def test(doctor: Doctor) -> None:
        pace.set_decoding(True)
        waiting = asyncio.create_task(doctor.diagnose(files, exact=True))
        await happens(begun.acquire)
        await doctor.close()
        with pytest.raises(Exception, match="nobody waits"):
            await asyncio.wait_for(waiting, WAIT)

    with_doctor(test)


def test_what_was_counted_stays_the_latest_report_whatever_is_screened_later(
    with_doctor, registry: Registry, files: dict[str, Path]
) -> None:
    def reports(digest: str) -> list[bool]:
        """Whether each is of an exact diagnosis, the latest first."""
        found = []
        for referrer in registry.referrers(digest):
            with registry.read_blob(referrer.document.digest) as file:
                found.append(json.load(file)["exact"])
        return found

    async def test(doctor: Doctor) -> None:
        contents = {name: path.read_bytes() for name, path in files.items()}
        record, _ = publish(registry, "a", contents, base=ModelWeights(tiny_llama()).shape)
        screens = doctor._screens = HeldBack()
        screening = asyncio.create_task(doctor.examine_soon(record))
        await happens(screens.asked.wait)
        doctor.attach(record, await doctor.diagnose(files, exact=True))
        assert reports(record.digest) == [True]
        screens.free.set()
        await asyncio.gather(screening, *doctor._tasks)
        assert reports(record.digest) == [True, False]
        doctor.attach(record, await doctor.diagnose(files))
        assert reports(record.digest) == [True, False]

    with_doctor(test)
