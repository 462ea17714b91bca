"""The asyncio client exports and imports as the blocking one does; many at once, and until it is cancelled."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted_server import ScriptedServer

from hotshoe.clients import AsyncClient, Client, NotFound
from hotshoe.clients.errors import InvalidAdapterDirectory
from hotshoe.clients.exchange import aio, exports
from hotshoe.clients.local_server import LocalServer
from hotshoe.clients.progress import TransferProgress
from hotshoe.protos.v1 import registry_pb2


@pytest.fixture
def published(server: LocalServer, adapters: dict[str, Path]) -> Iterator[registry_pb2.Adapter]:
    with Client(server.grpc) as client:
        yield client.publish_directory(adapters["birch"], "aio/one", tags=["v1"]).adapter


def files_of(path: Path) -> dict[str, bytes]:
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(one.relative_to(path)): one.read_bytes() for one in path.rglob("*") if one.is_file()}


def test_every_form_is_what_the_blocking_client_writes(
    server: LocalServer, published: registry_pb2.Adapter, tmp_path: Path
) -> None:
    steps: list[TransferProgress] = []

    async def export_all(root: Path) -> None:
        async with AsyncClient(server.grpc) as client:
            for form in exports.FORMATS:
                target = root / f"aio.{form}"
                adapter = await aio.export(client, "aio/one:v1", target, form=form, progress=steps.append)
                assert adapter.digest == published.digest

    with Client(server.grpc) as client:
        for root in (tmp_path / "once", tmp_path / "again"):
            said = client.get_adapter("aio/one:v1").referrers
            asyncio.run(export_all(root))
            for form in exports.FORMATS:
                exports.export(client, "aio/one:v1", root / f"blocking.{form}", form=form)
            if client.get_adapter("aio/one:v1").referrers == said:
                break  # else the doctor's report came meanwhile, which it does once
    assert {step.stage for step in steps} == {"download"}
    for form in exports.FORMATS:
        assert files_of(root / f"aio.{form}") == files_of(root / f"blocking.{form}"), form


def test_more_imports_than_the_loop_has_threads_end(
    server: LocalServer, adapters: dict[str, Path], published: registry_pb2.Adapter, tmp_path: Path
) -> None:
    async def import_all() -> None:
        async with AsyncClient(server.grpc) as client:
            await aio.export(client, "aio/one:v1", tmp_path / "one", form="oci")
            sources = [tmp_path / "one", adapters["birch"]] * 20
            done = await asyncio.gather(
                *(aio.import_adapter(client, source, f"aio/copy{at}") for at, source in enumerate(sources))
            )
            assert {one.adapter.digest for one in done} == {published.digest}
            assert [one.adapter.name for one in done] == [f"aio/copy{at}" for at in range(40)]
            with pytest.raises(InvalidAdapterDirectory):
                await aio.import_adapter(client, tmp_path, "aio/none")
            with pytest.raises(NotFound):
                await aio.export(client, "aio/none", tmp_path / "none", form="dir")

    asyncio.run(asyncio.wait_for(import_all(), 250))
    assert os.listdir(tmp_path) == ["one"]


def test_what_is_cancelled_ends_at_once_and_leaves_nothing(scripted: ScriptedServer, tmp_path: Path) -> None:
    asked, release = threading.Event(), threading.Event()

    def stands_still(_: list[object]) -> registry_pb2.GetAdapterResponse:
        asked.set()
        release.wait(200)
        return registry_pb2.GetAdapterResponse()

    scripted.answer("RegistryService/GetAdapter", stands_still)

    async def cancel() -> float:
        loop = asyncio.get_running_loop()
        async with AsyncClient(scripted.address) as client:
            task = asyncio.create_task(aio.export(client, "a", tmp_path / "out", form="oci"))
            assert await asyncio.to_thread(asked.wait, 100)
            started = loop.time()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return loop.time() - started

    assert asyncio.run(cancel()) < 100
    release.set()
    assert os.listdir(tmp_path) == []
    for thread in threading.enumerate():
        if thread.name.startswith("exchange"):
            thread.join(60)
            assert not thread.is_alive()
