"""A server in this process, so that its engine can be broken on purpose."""

import asyncio
import hashlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status
from model_directories import tiny_model, write_tiny_model
from peft_adapters import write_lora

from hotshoe.protos.v1 import generation_pb2, generation_pb2_grpc
from hotshoe.registry.manifest import AdapterRecord, FileDescriptor
from hotshoe.server.config import Address, EngineConfig, ServerConfig
from hotshoe.server.lifecycle import Server, StartupError, _Signals
from hotshoe.server.services.health import Health

LIMIT_SECONDS = 0.8
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Broken(BaseException):
    """Nothing that the engine recovers from."""


class Running:
    """A started server, a channel to it, and its decoder's forward pass to break."""

    def __init__(self, server: Server, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        self._health: Any = health_pb2_grpc.HealthStub(channel)

    def on_forward(self, before: Callable[[], None]) -> None:
        decoder = self.server.base.decoder
        compute = type(decoder).logits_of

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before()
            return compute(decoder, *args, **kwargs)

        decoder.logits_of = wrapped  # type: ignore[method-assign]

    async def health(self) -> int:
        return int((await self._health.Check(health_pb2.HealthCheckRequest())).status)

    async def becomes(self, status: int) -> None:
        async with asyncio.timeout(60):
            while await self.health() != status:
                await asyncio.sleep(0.02)

    def generate(self, tokens: int = 4) -> Any:
        stopping = generation_pb2.StopCriteria(max_new_tokens=tokens, ignore_eos=True)
        return self.generation.Generate(generation_pb2.GenerateRequest(text="hello", stopping=stopping))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    directory: Path = tmp_path_factory.mktemp("lifecycle")
    write_tiny_model(directory / "tiny")
    return ServerConfig(
        registry=directory / "registry",
        base_cache=directory / "bases",
        base=str(directory / "tiny"),
        listen=Address("127.0.0.1", 0),
        http=None,
        backend="reference",
        engine=EngineConfig(check_every_step=True),
    )


def _run(config: ServerConfig, body: Callable[[Running], Coroutine[Any, Any, None]]) -> None:
    @asynccontextmanager
    async def running() -> AsyncIterator[Running]:
        server = Server(config, health=Health(heartbeat_limit_seconds=LIMIT_SECONDS))
        ready = await server.start()
        async with grpc.aio.insecure_channel(ready["grpc"]) as channel:
            yield Running(server, channel)
        await server.stop()

    async def main() -> None:
        async with asyncio.timeout(200), running() as server:
            await body(server)

    asyncio.run(main())


def _reason(error: grpc.aio.AioRpcError) -> str:
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in rpc_status.from_call(error).details)
    return info.reason


def test_a_stuck_engine_is_not_serving_until_it_moves_again(config: ServerConfig) -> None:
    async def body(running: Running) -> None:
        reached, release = threading.Event(), threading.Event()
        await running.becomes(SERVING)

        def stick() -> None:
            reached.set()
            release.wait(100)

        running.on_forward(stick)
        call = running.generate()
        assert await asyncio.to_thread(reached.wait, 60)
        await running.becomes(NOT_SERVING)
        assert running.server.health.state == "stuck"
        release.set()
        await running.becomes(SERVING)
        assert len((await call).completions[0].tokens) == 4

    _run(config, body)


def test_a_dead_engine_is_not_serving_and_every_request_hears_of_it(config: ServerConfig) -> None:
    async def body(running: Running) -> None:
        steps = iter(range(5))

        def die() -> None:
            if next(steps) == 3:
                raise Broken

        running.on_forward(die)
        calls = [running.generate(100) for _ in range(4)]
        for call in calls:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert _reason(caught.value) == "ENGINE_DEAD"
        assert await running.health() == NOT_SERVING
        assert running.server.health.state == "dead"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.generate()
        assert _reason(caught.value) == "ENGINE_DEAD"

    _run(config, body)


def test_a_step_that_fails_ends_its_requests_only(config: ServerConfig) -> None:
    async def body(running: Running) -> None:
        broken = [True]

        def fail_once() -> None:
            if broken.pop() if broken else False:
                raise RuntimeError("secret /path")

        running.on_forward(fail_once)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await running.generate()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "secret" not in str(caught.value)
        assert len((await running.generate()).completions[0].tokens) == 4
        await running.becomes(SERVING)

    _run(config, body)


def test_who_waits_for_an_adapter_is_seen_though_nothing_runs(config: ServerConfig, tmp_path: Path) -> None:
    async def body(running: Running) -> None:
        server, release = running.server, threading.Event()
        record = await asyncio.to_thread(_publish, server, write_lora(tmp_path / "poet", tiny_model()))
        files = server.registry.adapter_files

        def slow_files(digest: str) -> dict[str, Path]:
            release.wait(100)
            return files(digest)

        server.registry.adapter_files = slow_files  # type: ignore[method-assign]
        request = generation_pb2.GenerateRequest(text="hello", stopping={"max_new_tokens": 2})
        request.adapters.add(reference="poet")
        call = running.generation.Generate(request)
        waiting = {"model_name": server.base.name, "engine": "0"}
        async with asyncio.timeout(60):
            while not server.metrics.registry.get_sample_value("vllm:num_requests_waiting", waiting):
                await asyncio.sleep(0.02)
        assert server.dispatcher.waiting_adapters() == {("poet", record.digest): 1}
        assert 'waiting_lora_adapters="poet"' in server.metrics.scrape("")[0].decode()
        release.set()
        await call
        assert server.metrics.registry.get_sample_value("vllm:num_requests_waiting", waiting) == 0
        assert not server.dispatcher.waiting_adapters()

    _run(config, body)


def _publish(server: Server, directory: Path) -> AdapterRecord:
    files = []
    for path in (directory / "adapter_config.json", directory / "adapter_model.safetensors"):
        data = path.read_bytes()
        blob = FileDescriptor(path.name, f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
        with server.registry.open_upload(blob) as upload:
            upload.write(0, data)
            upload.finish()
        files.append(blob)
    record, _ = server.registry.publish(
        name="poet", tags=["latest"], files=files, annotations={}, base=server.base.weights.shape
    )
    return record


def test_a_drained_server_has_finished_what_it_took(config: ServerConfig) -> None:
    async def body(running: Running) -> None:
        taken = threading.Event()
        running.on_forward(taken.set)
        call = running.generate(50)
        assert await asyncio.to_thread(taken.wait, 60)
        assert await running.server.drain(100)
        assert len((await call).completions[0].tokens) == 50
        assert running.server.engine.drained()
        assert await running.health() == NOT_SERVING

    _run(config, body)


def test_no_request_waits_behind_prompts_that_take_long_to_tokenize(config: ServerConfig) -> None:
    async def body(running: Running) -> None:
        await running.becomes(SERVING)
        reached, release = threading.Event(), threading.Event()
        tokenizer = running.server.base.tokenizer
        encode = type(tokenizer).encode

        def slow(text: str, **options: bool) -> list[int]:
            if len(text) > 100_000:
                reached.set()
                release.wait(100)
            return encode(tokenizer, text, **options)

        tokenizer.encode = slow  # type: ignore[method-assign]
        huge = generation_pb2.GenerateRequest(text="x" * 200_000)
        waiting = [asyncio.ensure_future(running.generation.Generate(huge)) for _ in range(4)]
        assert await asyncio.to_thread(reached.wait, 60)
        assert len((await running.generate()).completions[0].tokens) == 4
        assert not any(call.done() for call in waiting)
        release.set()
        for call in waiting:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert _reason(caught.value) == "PROMPT_TOO_LONG"

    _run(config, body)


def test_a_base_that_the_gpu_has_no_memory_for_is_told_in_one_line(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 112.00 MiB.\nSee the documentation.")

    async def main() -> None:
        with pytest.raises(StartupError, match=r"base .*: no memory to load it: CUDA out of memory\. .* MiB\.$"):
            await Server(config).start()

    monkeypatch.setattr("hotshoe.server.core.load_base", full)
    asyncio.run(main())


def test_the_size_of_the_cache_is_logged_and_told(config: ServerConfig, caplog: pytest.LogCaptureFixture) -> None:
    async def body(running: Running) -> None:
        info = await running.generation.GetModelInfo(generation_pb2.GetModelInfoRequest())
        size = (16_384 + 16) * running.server.base.decoder.kv_token_bytes
        assert (info.kv_cache_tokens, info.kv_cache_bytes) == (16_384, size)
        [told] = [record.__dict__["fields"] for record in caplog.records if record.message == "kv_cache"]
        assert (told["tokens"], told["bytes"]) == (16_384, size)
        scrape = running.server.metrics.scrape("")[0].decode()
        assert 'block_size="16"' in scrape and 'num_gpu_blocks="1024"' in scrape

    caplog.set_level("INFO", "hotshoe")
    _run(config, body)


def test_a_machine_that_has_next_to_nothing_free_is_told_what_to_say(
    config: ServerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        with pytest.raises(StartupError, match=r"^--kv-tokens: half of the 0\.00 GiB .* holds 0 tokens"):
            await Server(config).start()
        said = Server(replace(config, engine=EngineConfig(kv_tokens=64)))
        await said.start()
        await said.stop()

    monkeypatch.setattr("hotshoe.server.core.free_bytes", lambda device: 100)
    asyncio.run(main())


def test_more_memory_than_there_can_be_is_told_in_one_line(config: ServerConfig) -> None:
    async def main() -> None:
        server = Server(replace(config, engine=EngineConfig(kv_tokens=1 << 50)))
        with pytest.raises(StartupError, match="no memory for what --kv-tokens"):
            await server.start()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"merge": "nobody:v1"}, "--merge: no adapter nobody:v1: nothing has that name"),
        ({"auth_keys": Path("/nowhere/keys")}, "--auth-keys: /nowhere/keys: No such file or directory"),
    ],
)
def test_a_start_that_fails_names_the_flag(config: ServerConfig, wrong: dict[str, Any], told: str) -> None:
    async def main() -> None:
        with pytest.raises(StartupError) as refused:
            await Server(replace(config, **wrong)).start()
        assert str(refused.value) == told

    asyncio.run(main())


def test_a_start_that_fails_leaves_its_ports_free(config: ServerConfig) -> None:
    async def main() -> None:
        wrong = replace(config, base="/nowhere", http=Address("127.0.0.1", 0))
        server = Server(wrong)
        with pytest.raises(StartupError, match="nowhere"):
            await server.start()
        assert server.http is not None
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", server.http.address.port)

    asyncio.run(main())


@pytest.mark.parametrize("minded", [True, False])
def test_a_terminal_that_closes_is_a_signal_unless_the_server_was_told_not_to_mind(minded: bool) -> None:
    async def both_were_noticed() -> bool:
        signals = _Signals()
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            await signals.first.wait()
            if minded:
                await signals.second.wait()
        return signals.second.is_set()

    before = signal.signal(signal.SIGHUP, signal.SIG_DFL if minded else signal.SIG_IGN)
    try:
        assert asyncio.run(both_were_noticed()) is minded
    finally:
        signal.signal(signal.SIGHUP, before)
