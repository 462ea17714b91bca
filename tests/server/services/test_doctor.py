"""Diagnoses give way to what decodes, and end when nobody wants them any more."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from peft_adapters import adapter_files, write_lora
from tiny_models import TARGETS, ModelWeights, tiny_llama

from hotshoe.registry.registry import Registry
from hotshoe.registry.validation import AdapterLimits
from hotshoe.server.adapters.loader_pace import LoaderPace
from hotshoe.server.adapters.one_core import let_others_first
from hotshoe.server.model.spectra import Spectra
from hotshoe.server.services import paced_work
from hotshoe.server.services.doctor import Doctor

FOREVER_SHARE = 1e-7  # half a millisecond of work costs more than an hour
WAIT = 100.0  # seconds, for what takes a fraction of one


@pytest.fixture
def pace() -> LoaderPace:
    return LoaderPace(FOREVER_SHARE)


@pytest.fixture(autouse=True)
def with_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long work has only idle cores otherwise, and a busy machine may have none."""
    monkeypatch.setattr(paced_work, "run_when_idle", let_others_first)


@pytest.fixture
def with_doctor(pace: LoaderPace, tmp_path: Path) -> Iterator[Callable[[Callable[[Doctor], Awaitable[None]]], None]]:
    registry = Registry(tmp_path / "registry")
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

    yield run
    registry.close()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    return adapter_files(write_lora(tmp_path / "adapter", tiny_llama(), targets=TARGETS, rank=16))


def test_a_diagnosis_waits_while_requests_decode_and_goes_on_when_they_do_not(
    with_doctor, pace: LoaderPace, files: dict[str, Path]
) -> None:
    async def test(doctor: Doctor) -> None:
        assert len((await doctor.diagnose(files)).linears) == 14
        pace.set_decoding(True)
        waiting = asyncio.create_task(doctor.diagnose(files, exact=True))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        pace.set_decoding(False)
        assert (await asyncio.wait_for(waiting, WAIT)).is_exact

    with_doctor(test)


def test_a_diagnosis_that_is_given_up_makes_room_for_the_next(
    with_doctor, pace: LoaderPace, files: dict[str, Path]
) -> None:
    async def test(doctor: Doctor) -> None:
        pace.set_decoding(True)
        first = asyncio.create_task(doctor.diagnose(files, exact=True))
        await asyncio.sleep(0.3)
        first.cancel()
        with suppress(asyncio.CancelledError):
            await first
        second = asyncio.create_task(doctor.diagnose(files, exact=True))
        await asyncio.sleep(0.3)
        pace.set_decoding(False)
        assert (await asyncio.wait_for(second, WAIT)).is_exact

    with_doctor(test)


def test_closing_ends_what_waits(with_doctor, pace: LoaderPace, files: dict[str, Path]) -> None:
    async def test(doctor: Doctor) -> None:
        pace.set_decoding(True)
        waiting = asyncio.create_task(doctor.diagnose(files, exact=True))
        await asyncio.sleep(0.2)
        await doctor.close()
        with pytest.raises(Exception, match="nobody waits"):
            await asyncio.wait_for(waiting, WAIT)

    with_doctor(test)
