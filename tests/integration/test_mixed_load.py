"""Requests of every kind that end in every way, at once: each has one end, and nothing is left over."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from model_directories import tiny_model
from peft_adapters import write_ia3, write_lora, write_prefix, write_prompt
from server_process import ServerProcess, publish
from soak import sums_that_stay_different

from hotshoe.protos.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    residency_pb2,
    residency_pb2_grpc,
)

StartServer = Callable[..., ServerProcess]
FATES = ("wait", "wait", "cancel", "deadline")
LONG = 400  # tokens, which no machine makes before it is told to stop


class Stubs:
    """The services on one asyncio channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.generation: Any = generation_pb2_grpc.GenerationServiceStub(channel)
        self.residency: Any = residency_pb2_grpc.ResidencyServiceStub(channel)


def _run(server: ServerProcess, body: Callable[[Stubs], Any], *, seconds: float) -> None:
    async def main() -> None:
        async with asyncio.timeout(seconds), grpc.aio.insecure_channel(server.ready["grpc"]) as channel:
            await body(Stubs(channel))

    asyncio.run(main())


def _request(reference: str | None, text: str, tokens: int) -> generation_pb2.GenerateRequest:
    request = generation_pb2.GenerateRequest(text=text, stopping={"max_new_tokens": tokens, "ignore_eos": True})
    if reference:
        request.adapters.add(reference=reference)
    return request


def test_cancels_deadlines_and_churn_leave_nothing_behind(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--log-json", "--adapter-slots", "3", "--kv-tokens", "2048", "--max-running-requests", "8")
    model = tiny_model()
    writers = {"lora": write_lora, "ia3": write_ia3, "prefix": write_prefix, "prompt": write_prompt, "more": write_lora}
    for name, write in writers.items():
        publish(server, name, write(tmp_path / name, model))
    randomness = random.Random(5)
    ends: Counter[str] = Counter()

    async def body(stubs: Stubs) -> None:
        async def ask(number: int) -> None:
            await asyncio.sleep(randomness.random() * 4)
            fate = FATES[number % len(FATES)]
            tokens = randomness.randrange(1, 60) if fate == "wait" else LONG
            request = _request(randomness.choice([None, *writers]), f"request {number}", tokens)
            timeout = randomness.random() * 0.1 if fate == "deadline" else None
            if randomness.random() < 0.5:
                call = stubs.generation.StreamGenerate(
                    generation_pb2.StreamGenerateRequest(request=request), timeout=timeout
                )
                work = asyncio.create_task(_read_all(call))
            else:
                call = stubs.generation.Generate(request, timeout=timeout)
                work = asyncio.ensure_future(call)
            if fate == "cancel":
                await asyncio.sleep(randomness.random() * 0.05)
                call.cancel()
            await asyncio.wait([work])
            ends[(await call.code()).name] += 1

        async def churn() -> None:
            while True:
                name = randomness.choice(list(writers))
                await stubs.residency.UnloadAdapter(residency_pb2.UnloadAdapterRequest(reference=name))
                await asyncio.sleep(0.1)

        churning = asyncio.create_task(churn())
        await asyncio.gather(*map(ask, range(200)))
        assert not churning.done(), churning.exception()
        churning.cancel()
        watch = stubs.residency.WatchStatus(residency_pb2.WatchStatusRequest(interval_ms=50), timeout=200)
        async for status in watch:
            busy = status.running_requests + status.waiting_requests + status.kv_cache_usage
            if not busy and not any(adapter.running_requests for adapter in status.adapters):
                break
        watch.cancel()

    _run(server, body, seconds=280)
    assert sum(ends.values()) == 200
    assert set(ends) == {"OK", "CANCELLED", "DEADLINE_EXCEEDED"}
    assert min(ends.values()) > 10
    assert server.get("/health")[0] == 200
    assert "internal_error" not in server.log
    assert "Traceback" not in server.log
    assert sums_that_stay_different(server) == []


async def _read_all(call: Any) -> None:
    async for _ in call:
        pass
