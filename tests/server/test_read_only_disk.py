"""A server over disks that take no writes: it serves what is there, and says in one line what it could not do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from model_directories import tiny_model, write_tiny_model
from peft_adapters import write_lora
from read_only_disks import FailingDisk, read_only_view
from store_adapters import publish

from hotshoe.protos.v1 import generation_pb2, generation_pb2_grpc, registry_pb2, registry_pb2_grpc
from hotshoe.registry.registry import Registry
from hotshoe.server.config import Address, EngineConfig, ServerConfig
from hotshoe.server.lifecycle import Server, StartupError
from hotshoe.server.model.loader import load_base


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    directory: Path = tmp_path_factory.mktemp("read-only")
    write_tiny_model(directory / "tiny")
    load_base(str(directory / "tiny"), cache=directory / "bases", backend="reference")
    return ServerConfig(
        registry=directory / "registry",
        base_cache=directory / "bases",
        base=str(directory / "tiny"),
        listen=Address("127.0.0.1", 0),
        http=None,
        backend="reference",
        doctor="off",
        engine=EngineConfig(kv_tokens=512),
    )


@asynccontextmanager
async def running(config: ServerConfig) -> AsyncIterator[tuple[Server, grpc.aio.Channel]]:
    server = Server(config)
    ready = await server.start()
    try:
        async with grpc.aio.insecure_channel(ready["grpc"]) as channel:
            yield server, channel
    finally:
        await server.stop()


async def generate(channel: grpc.aio.Channel, *adapters: str) -> int:
    """How many tokens are answered."""
    stub: Any = generation_pb2_grpc.GenerationServiceStub(channel)
    stopping = generation_pb2.StopCriteria(max_new_tokens=3, ignore_eos=True)
    stack = [generation_pb2.AdapterSelection(reference=adapter) for adapter in adapters]
    answer = await stub.Generate(generation_pb2.GenerateRequest(text="hello", adapters=stack, stopping=stopping))
    return len(answer.completions[0].tokens)


def test_adapters_are_loaded_and_served_from_a_disk_that_gave_up(config: ServerConfig, tmp_path: Path) -> None:
    disk = FailingDisk(tmp_path)

    async def main() -> None:
        async with running(replace(config, registry=disk.path / "registry")) as (server, channel):
            write_lora(tmp_path / "adapter", tiny_model(), scale=1.0)
            files = {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}
            publish(server.registry, "one", files, tags=["v1"], base=server.base.weights.shape)
            disk.give_up()
            assert await generate(channel, "one:v1") == 3
            stub: Any = registry_pb2_grpc.RegistryServiceStub(channel)
            [listed] = (await stub.ListAdapters(registry_pb2.ListAdaptersRequest())).adapters
            assert listed.name == "one"
            with pytest.raises(grpc.aio.AioRpcError) as told:
                update = registry_pb2.UpdateTagRequest(name="one", tag="v2", digest=listed.digest)
                await stub.UpdateTag(update)
            assert told.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "Read-only file system" in told.value.details()
            assert await generate(channel, "one:v1") == 3

    try:
        asyncio.run(main())
    finally:
        disk.unmount()


def test_a_base_that_is_prepared_is_read_from_a_read_only_cache(config: ServerConfig, tmp_path: Path) -> None:
    async def main(cache: Path) -> None:
        async with running(replace(config, base_cache=cache, registry=tmp_path / "registry")) as (_, channel):
            assert await generate(channel) == 3

    with read_only_view(config.base_cache, tmp_path / "view") as view:
        asyncio.run(main(view))


def test_a_disk_that_takes_no_writes_is_told_before_anything_is_served(config: ServerConfig, tmp_path: Path) -> None:
    async def refusal(config: ServerConfig) -> str:
        with pytest.raises(StartupError) as told:
            await Server(config).start()
        return str(told.value)

    (tmp_path / "empty").mkdir()
    with read_only_view(tmp_path / "empty", tmp_path / "view") as view:
        cache = replace(config, base_cache=view, registry=tmp_path / "registry")
        assert asyncio.run(refusal(cache)).startswith(f"--base-cache: {view}/")
        none = replace(cache, base_cache=view / "none")
        assert asyncio.run(refusal(none)) == f"--base-cache: {view}/none: Read-only file system"


def test_a_server_serves_from_a_registry_that_it_cannot_write_and_follows_who_can(
    config: ServerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = {
        path.name: path.read_bytes() for path in write_lora(tmp_path / "adapter", tiny_model(), scale=1.0).iterdir()
    }
    (tmp_path / "shared").mkdir()
    base = load_base(config.base, cache=config.base_cache, backend="reference").weights.shape

    async def main(view: Path, writer: Registry) -> None:
        one, _ = publish(writer, "one", files, tags=["v1"], base=base)
        remote = f"dir://{tmp_path / 'remote'}"
        reading = replace(config, registry=view / "registry", remotes=(remote,), collect_every_seconds=0.01)
        async with running(reading) as (_, channel):
            assert await generate(channel, "one:v1") == 3
            writer.update_tag("one", "later", one.digest, "")
            assert await generate(channel, "one:later") == 3
            stub: Any = registry_pb2_grpc.RegistryServiceStub(channel)
            [listed] = (await stub.ListAdapters(registry_pb2.ListAdaptersRequest())).adapters
            assert list(listed.tags) == ["later", "v1"]
            examined = await stub.DiagnoseAdapter(registry_pb2.DiagnoseAdapterRequest(reference="one:v1"))
            told = f"registry {view}/registry is read-only: its file system is mounted read-only; publish, tag and"
            assert examined.diagnosis.linears and examined.not_kept.startswith(told)
            for refused in await refusals(stub, channel, listed, remote):
                assert refused.code() is grpc.StatusCode.FAILED_PRECONDITION and told in refused.details()

    with closing(Registry(tmp_path / "shared" / "registry")) as writer:
        with read_only_view(tmp_path / "shared", tmp_path / "view") as view:
            asyncio.run(main(view, writer))
            assert not writer.leases() and not writer.referrers(writer.resolve("one:v1").digest)
    assert "registry_read_only" in caplog.messages


async def refusals(stub: Any, channel: grpc.aio.Channel, adapter: Any, remote: str) -> list[grpc.aio.AioRpcError]:
    """What the server answers to everything that would write."""
    absent = f"absent@sha256:{'0' * 64}"
    source = registry_pb2.MergeAdaptersRequest.Source(reference="one:v1")
    pull = stub.PullAdapter(registry_pb2.PullAdapterRequest(reference="one:v1", remote=remote))
    calls = [
        stub.PublishAdapter(registry_pb2.PublishAdapterRequest(name="new", blobs=adapter.blobs)),
        stub.UpdateTag(registry_pb2.UpdateTagRequest(name="one", tag="v2", digest=adapter.digest)),
        stub.DeleteTag(registry_pb2.DeleteTagRequest(name="one", tag="v1")),
        stub.CollectGarbage(registry_pb2.CollectGarbageRequest()),
        stub.LeaseAdapter(registry_pb2.LeaseAdapterRequest(reference="one:v1", holder="me")),
        stub.CreateView(registry_pb2.CreateViewRequest(reference="one:v1")),
        stub.MergeAdapters(registry_pb2.MergeAdaptersRequest(sources=[source, source], method="linear", name="new")),
        stub.MitigateAdapter(registry_pb2.MitigateAdapterRequest(reference="one:v1", keep=0.5, name="new")),
        pull.read(),
        generate(channel, absent),
    ]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(answer) for answer in answers] == [grpc.aio.AioRpcError] * len(calls)
    return answers  # type: ignore[return-value]
