"""Threads that load and unload the same adapters as fast as they can, while others generate with them.

    PYTHONPATH=tests/factories python tests/factories/attach_storm.py

32 threads, 1,024 times each, 24 adapters over 6 slots: every load and unload does as it says, every answer of the
bystanders is its adapter's own, and the server stays healthy. Exits with 1, and says what was wrong.
"""

import argparse
import contextlib
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from canaries import SLOTS, Canaries, publish_canaries
from model_directories import write_tiny_model
from server_process import ServerProcess, command, launch
from soak import sums_that_stay_different

from hotshoe.protos.v1 import generation_pb2, generation_pb2_grpc, residency_pb2, residency_pb2_grpc

ADAPTERS = 24
BYSTANDERS = 4
TIERS = (residency_pb2.TIER_HOST, residency_pb2.TIER_DEVICE)


@dataclass
class Storm:
    """What became of it. `wrong` must stay empty."""

    unloads: list[str] = field(default_factory=list)  # what each found, of an adapter that was loaded before
    answers: list[str] = field(default_factory=list)  # by whom
    looks: int = 0  # at the health
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


def storm(server: ServerProcess, canaries: Canaries, *, threads: int, rounds: int) -> Storm:
    """Loads and unloads in so many threads, so many times each, with bystanders as long as that takes."""
    result, over, started = Storm(), threading.Event(), time.monotonic()
    names = [name for name in canaries.digests if name.startswith("canary-")]

    def attach(draw: random.Random) -> None:
        with _channel(server) as channel:
            stub = residency_pb2_grpc.ResidencyServiceStub(channel)
            for _ in range(rounds):
                name = draw.choice(names)
                *_, last = stub.LoadAdapter(residency_pb2.LoadAdapterRequest(reference=name, tier=draw.choice(TIERS)))
                if last.stage != last.STAGE_READY or last.adapter.digest != canaries.digests[name]:
                    result.wrong.append(f"{name} was loaded as {last!r}")
                gone = stub.UnloadAdapter(residency_pb2.UnloadAdapterRequest(reference=name))
                result.unloads.append("in use" if gone.in_use else "found" if gone.found else "gone")

    def generate(draw: random.Random) -> None:
        with _channel(server) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            while not over.is_set():
                name = draw.choice(names)
                request = generation_pb2.GenerateRequest(text=f"beside {draw.random()}", adapters=[{"reference": name}])
                request.stopping.max_new_tokens, request.stopping.ignore_eos = draw.randint(1, 8), True
                ids = {token.token_id for token in stub.Generate(request).completions[0].tokens}
                if ids != {canaries.tokens[canaries.digests[name]]}:
                    result.wrong.append(f"{name} answered {ids}")
                result.answers.append(name)

    def look(draw: random.Random) -> None:
        while not over.wait(0.2):
            status, body = server.get("/health")
            result.looks += 1
            if status != 200:
                result.wrong.append(f"health: {body}")

    bystanders = [_begin(look, 0, result)] + [_begin(generate, seed, result) for seed in range(BYSTANDERS)]
    attaching = [_begin(attach, 100 + seed, result) for seed in range(threads)]
    for thread in attaching:
        thread.join()
    over.set()
    for thread in bystanders:
        thread.join()
    result.seconds = time.monotonic() - started
    result.wrong += sums_that_stay_different(server)
    return result


def _channel(server: ServerProcess) -> grpc.Channel:
    return grpc.insecure_channel(server.ready["grpc"], options=[("grpc.use_local_subchannel_pool", 1)])


def _begin(run: Callable[[random.Random], None], seed: int, result: Storm) -> threading.Thread:
    def noted() -> None:
        try:
            run(random.Random(seed))
        except Exception as error:
            result.wrong.append(repr(error))

    thread = threading.Thread(target=noted)
    thread.start()
    return thread


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--threads", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        model = write_tiny_model(directory / "tiny")
        server = launch(directory, command(directory / "tiny", directory / "registry", *SLOTS))
        stack.callback(server.end)
        canaries = publish_canaries(server, model, directory / "canaries", ADAPTERS)
        result = storm(server, canaries, threads=options.threads, rounds=options.rounds)
    print(*result.wrong[:8], sep="\n")
    print(
        f"{len(result.unloads)} loads and unloads {dict(Counter(result.unloads))} in {result.seconds:.0f} s, "
        f"{len(result.answers)} answers beside them, healthy {result.looks} times: {len(result.wrong)} wrong"
    )
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
