"""The two clients are one client in two ways of waiting."""

import asyncio
import inspect
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from scripted_server import Failure, ScriptedServer

from hotshoe.clients import AsyncClient, Cancelled, Client, DeadlineExceeded
from hotshoe.clients.transfers import Transfers
from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2

DELTA = generation_pb2.StreamGenerateResponse(text_delta="a")


def public_methods(client: type) -> dict[str, inspect.Signature]:
    methods = inspect.getmembers(client, inspect.isfunction)
    return {name: inspect.signature(method) for name, method in methods if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    blocking, asynchronous = public_methods(Client), public_methods(AsyncClient)
    assert blocking.keys() == asynchronous.keys()
    for name, signature in blocking.items():
        assert list(signature.parameters.values()) == list(asynchronous[name].parameters.values()), name


def test_every_call_has_a_timeout() -> None:
    without = [name for name, signature in public_methods(Client).items() if "timeout" not in signature.parameters]
    assert without == ["close"]


def test_every_rpc_that_this_release_serves_can_be_called() -> None:
    modules = {inspect.getmodule(one) for one in (*Client.__mro__[:-1], Transfers)}
    source = "".join(map(inspect.getsource, filter(None, modules)))
    for module in (generation_pb2, registry_pb2, residency_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            missing = {method.name for method in service.methods if f".{method.name}" not in source}
            assert missing == set()


def test_importing_the_clients_is_quick_and_brings_nothing_heavy() -> None:
    statement = "from hotshoe.clients import Client, AsyncClient"
    heavy = "torch, transformers, numpy, rich, typer".split(", ")
    program = f"import sys, time; t = time.process_time(); {statement}; print(time.process_time() - t, *sys.modules)"
    command, seconds = [sys.executable, "-P", "-c", program], []
    while min(seconds, default=1.0) >= 0.3 and len(seconds) < 20:  # a busy machine's caches are cold
        took, *modules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert not set(heavy) & set(modules)
        seconds.append(float(took))
    assert min(seconds) < 0.3


def test_what_the_clients_name_is_imported_when_it_is_used() -> None:
    program = (
        "import sys; from hotshoe import clients; early = {'grpc', 'google.protobuf', 'asyncio'} & {*sys.modules}; "
        "print(early, {*clients.__all__} - {*dir(clients)}, 'grpc' in sys.modules, "
        "{getattr(clients, name).__name__ for name in clients.__all__ if name[0] != 'N'} - {*clients.__all__}, "
        "'grpc' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["set()", "set()", "False", "set()", "True"]
    with pytest.raises(ImportError, match="Cleint"):
        from hotshoe.clients import Cleint  # type: ignore[attr-defined]  # noqa: F401


def test_list_follows_the_pages(scripted: ScriptedServer) -> None:
    def page(names: str, token: str) -> registry_pb2.ListAdaptersResponse:
        adapters = [registry_pb2.Adapter(name=name) for name in names]
        return registry_pb2.ListAdaptersResponse(adapters=adapters, next_page_token=token)

    def listed() -> list[str]:
        scripted.answer("RegistryService/ListAdapters", page("ab", "t1"), page("", "t2"), page("c", ""))
        with Client(scripted.address) as client:
            return [adapter.name for adapter in client.list_adapters(kind="LORA", page_size=2)]

    async def listed_too() -> list[str]:
        scripted.answer("RegistryService/ListAdapters", page("ab", "t1"), page("", "t2"), page("c", ""))
        async with AsyncClient(scripted.address) as client:
            return [adapter.name async for adapter in client.list_adapters(kind="LORA", page_size=2)]

    assert listed() == asyncio.run(listed_too()) == ["a", "b", "c"]
    requests = scripted.calls("RegistryService/ListAdapters")
    assert [request.page_token for request in requests] == ["", "t1", "t2"] * 2
    assert {(request.kind, request.page_size) for request in requests} == {("LORA", 2)}


def test_load_tells_its_stages_and_returns_the_adapter(scripted: ScriptedServer) -> None:
    response = residency_pb2.LoadAdapterResponse
    ready = response(stage=response.STAGE_READY, adapter=residency_pb2.ResidentAdapter(name="a"))
    scripted.answer("ResidencyService/LoadAdapter", [response(stage=response.STAGE_RESOLVING), ready])
    stages: list[Any] = []
    with Client(scripted.address) as client:
        adapter = client.load("a", tier="host", pin=True, progress=lambda step: stages.append(step.stage))
    assert adapter.name == "a"
    assert stages == [response.STAGE_RESOLVING, response.STAGE_READY]
    [request] = scripted.calls("ResidencyService/LoadAdapter")
    assert (request.tier, request.pin) == (residency_pb2.TIER_HOST, True)


def test_a_stream_that_is_left_is_cancelled_at_the_server(scripted: ScriptedServer) -> None:
    endless = threading.Event()

    def deltas(_: list[Any]) -> list[Any]:
        return [DELTA] * 100_000  # far more than fits the network's buffers

    scripted.answer("GenerationService/StreamGenerate", deltas)
    with Client(scripted.address) as client, client.stream("hi") as stream:
        next(stream)
        threading.Timer(0.1, stream.cancel).start()
        with pytest.raises(Cancelled):
            for _ in stream:
                endless.wait(0.001)
    with pytest.raises(RuntimeError, match="not ended"):
        _ = stream.final


@pytest.fixture
def held(scripted: ScriptedServer) -> Iterator[threading.Event]:
    """Is set once the server has a request, which it does not answer while the test lasts."""
    asked, over = threading.Event(), threading.Event()

    def stand_still(_: list[Any]) -> generation_pb2.GenerateResponse:
        asked.set()
        over.wait(200)
        return generation_pb2.GenerateResponse()

    scripted.answer("GenerationService/Generate", stand_still)
    yield asked
    over.set()


def test_an_asyncio_task_that_is_cancelled_stays_cancelled(scripted: ScriptedServer, held: threading.Event) -> None:
    async def cancel() -> None:
        async with AsyncClient(scripted.address) as client:
            task = asyncio.create_task(client.generate("hi"))
            assert await asyncio.to_thread(held.wait, 60)
            task.cancel()
            await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancel())


def test_a_timeout_covers_the_whole_call(scripted: ScriptedServer, held: threading.Event) -> None:
    with Client(scripted.address) as client, pytest.raises(DeadlineExceeded):
        client.generate("hi", timeout=0.1)


def test_tls_is_spoken_when_the_address_says_so(scripted: ScriptedServer) -> None:
    scripted.answer("GenerationService/GetModelInfo", Failure(grpc.StatusCode.INTERNAL))
    with Client(f"tls://{scripted.address}") as client, pytest.raises(Exception, match="(?i)ssl|tls|handshake"):
        client.model_info(timeout=60)


@pytest.mark.parametrize("server", ["", "host", "host:", "host:port", "host:65536", "http://host:1", "tls://host"])
def test_what_is_no_address_is_refused_before_anything_is_sent(server: str) -> None:
    with pytest.raises(ValueError, match="server: expected HOST:PORT"):
        Client(server)


@pytest.mark.parametrize("server", ["host:65535", "tls://host:1", "unix:/tmp/a.sock", "dns:host:1"])
def test_what_may_be_an_address_is_taken(server: str) -> None:
    with Client(server) as client:
        assert client.server == server
