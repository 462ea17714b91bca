"""hotshoe: a server in a process of its own, asked over gRPC. The one runner that has hotshoe in its environment."""

import asyncio
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from hotshoe.clients.aio import AsyncClient
from hotshoe.clients.channels import GENERATE_SECONDS, open_aio_channel
from hotshoe.clients.local_server import LocalServer
from hotshoe.clients.messages import adapter_selections
from hotshoe.protos.v1 import generation_pb2 as generation

from .protocol import Answer, Load, Loaded, Outcome, Request, Setup, Workload, serve

METHOD = "/hotshoe.v1.GenerationService/StreamGenerate"


class HotshoeServer:
    """Publishes every adapter at the start and loads the resident ones; the others lie in the registry, on disk."""

    def __init__(self) -> None:
        self._server: LocalServer | None = None
        self._loop = asyncio.new_event_loop()

    def prepare(self, setup: Setup) -> None:
        """Nothing: the server quantizes its base when it starts, and keeps that."""

    def start(self, setup: Setup) -> dict[str, str]:
        self._directory = tempfile.TemporaryDirectory(prefix="hotshoe-compare-")
        root = Path(self._directory.name)
        arguments = ["--base", setup.base, "--base-cache", setup.converted, "--threads", str(setup.threads)]
        arguments += ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--registry", str(root / "registry")]
        self._server = LocalServer(arguments, root / "server.log")
        self._server.__enter__()
        return self._loop.run_until_complete(self._start(setup))

    def run(self, workload: Workload) -> Outcome:
        return self._loop.run_until_complete(self._run(workload))

    def close(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._directory.cleanup()
        self._loop.close()

    async def _start(self, setup: Setup) -> dict[str, str]:
        assert self._server is not None
        async with AsyncClient(self._server.grpc) as client:
            for name, directory in setup.adapters.items():
                await client.publish_directory(directory, name)
            for name in setup.resident:
                await client.load(name)
            info = await client.model_info()
        return {"version": version("hotshoe"), "weights": info.quantization, "device": info.device}

    async def _run(self, workload: Workload) -> Outcome:
        assert self._server is not None
        payloads = [_payload(request, workload.new_tokens) for request in workload.requests]
        async with open_aio_channel(self._server.grpc) as channel, AsyncClient(self._server.grpc) as client:
            await asyncio.gather(channel.channel_ready(), client.model_info())
            # Bytes in, bytes out: what came is read after the clock has stopped.
            method = channel.unary_stream(METHOD)  # type: ignore[call-arg]
            start = time.perf_counter()
            streams = [_messages(method, payload, start) for payload in payloads]
            loads = [_load(client, load, start) for load in workload.loads]
            messages, loaded = await asyncio.gather(asyncio.gather(*streams), asyncio.gather(*loads))
        return Outcome([_answer(of_one) for of_one in messages], loaded)


def _payload(request: Request, new_tokens: int) -> bytes:
    message = generation.GenerateRequest(
        adapters=adapter_selections([request.adapter] if request.adapter else []),
        token_ids=generation.TokenIds(ids=request.prompt),
        sampling=generation.SamplingParams(temperature=0.0),
        stopping=generation.StopCriteria(max_new_tokens=new_tokens, ignore_eos=True),
    )
    return generation.StreamGenerateRequest(request=message).SerializeToString()


async def _messages(method, payload: bytes, start: float) -> list[tuple[float, bytes]]:  # type: ignore[no-untyped-def]
    return [(time.perf_counter() - start, message) async for message in method(payload, timeout=GENERATE_SECONDS)]


async def _load(client: AsyncClient, load: Load, start: float) -> Loaded:
    await asyncio.sleep(load.at_seconds - (time.perf_counter() - start))
    started = time.perf_counter() - start
    await client.load(load.adapter)
    return Loaded(load.adapter, started, time.perf_counter() - start)


def _answer(messages: list[tuple[float, bytes]]) -> Answer:
    answer = Answer()
    for seconds, message in messages:
        tokens = [token.token_id for token in generation.StreamGenerateResponse.FromString(message).tokens]
        answer.tokens += tokens
        answer.times += [seconds] * len(tokens)
    return answer


if __name__ == "__main__":
    serve(HotshoeServer())
