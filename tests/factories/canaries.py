"""Adapters that each answer with a token of their own, asked for at random while they come, go and move.

    PYTHONPATH=tests/factories python tests/factories/canaries.py

64 adapters of three kinds over 6 slots, 10,000 requests whose prompts begin alike, adapters that are unloaded and a tag
that moves all the while: an answer that holds another adapter's token was given by it, by its pages or by its slot.
Exits with 1, and says what was wrong.
"""

import argparse
import asyncio
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import planted_bugs
from canary_adapters import write_canary
from model_directories import write_tiny_model
from server_process import ServerProcess, command, launch, upload
from transformers import PreTrainedModel

from hotshoe.clients import Aborted, AsyncClient
from hotshoe.protos.v1 import generation_pb2, registry_pb2

SLOTS = ("--adapter-slots", "6", "--max-running-requests", "16", "--host-bytes", "1MB", "--log-json")
OPENINGS = [f"{letter}: what everybody sends to every adapter, pages of it, " for letter in "ABC"]
MOVING = "moving"
CONCURRENCY = 24
Answer = generation_pb2.GenerateResponse


@dataclass
class Canaries:
    """What is published, and what was answered."""

    tokens: dict[str, int] = field(default_factory=dict)  # of each digest
    digests: dict[str, str] = field(default_factory=dict)  # of each name
    answers: Counter[str] = field(default_factory=Counter)  # by digest, "" the base's
    of_the_base: dict[str, list[int]] = field(default_factory=dict)  # to each opening
    cached_tokens: int = 0
    unloaded: int = 0
    moves: int = 0
    wrong: list[str] = field(default_factory=list)


def publish_canaries(server: ServerProcess, model: PreTrainedModel, directory: Path, number: int) -> Canaries:
    """Each under a name of its own, and all under one, each with a tag of its own."""
    canaries = Canaries()
    tokens = random.Random(1).sample([token for token in range(32, 256)], number)
    for index, token in enumerate(tokens):
        written = write_canary(directory / f"canary-{index}", model, token, number=index)
        blobs = [upload(server, path) for path in sorted(written.iterdir())]
        for name, tag in ((f"canary-{index}", "latest"), (MOVING, f"v{index}")):
            request = registry_pb2.PublishAdapterRequest(name=name, tags=[tag], blobs=blobs)
            digest = server.registry.PublishAdapter(request).adapter.digest
            canaries.tokens[digest] = token
            canaries.digests.setdefault(name, digest)
    assert len(canaries.tokens) == number
    return canaries


async def sing(address: str, canaries: Canaries, requests: int, *, seed: int = 1) -> None:
    """Asks for names, digests, the moving tag and the base, until so many requests were answered."""
    draw, left = random.Random(seed), iter(range(requests))
    async with AsyncClient(address) as client:
        for opening in OPENINGS:
            alone = await client.generate(opening, max_new_tokens=4, ignore_eos=True)
            canaries.of_the_base[opening] = _ids(alone)
        await client.update_tag(MOVING, "latest", next(iter(canaries.tokens)), expected_digest="")
        disturbing = [asyncio.create_task(one) for one in (_move(client, canaries, draw), _unload(client, canaries))]

        async def ask() -> None:
            for _ in left:
                await _ask(client, canaries, draw)

        await asyncio.gather(*(ask() for _ in range(CONCURRENCY)))
        for task in disturbing:
            assert not task.done(), task.exception()
            task.cancel()


async def _ask(client: AsyncClient, canaries: Canaries, draw: random.Random) -> None:
    kind, opening, length = draw.random(), draw.choice(OPENINGS), draw.randint(1, 4)
    if kind < 0.1:
        answer = await client.generate(opening, max_new_tokens=length, ignore_eos=True)
        _note(canaries, answer, _ids(answer), canaries.of_the_base[opening][:length], {""})
        return
    name = MOVING if kind < 0.3 else draw.choice([name for name in canaries.digests if name != MOVING])
    may_be = set(canaries.tokens) if name == MOVING else {canaries.digests[name]}
    reference = f"{name}@{canaries.digests[name]}" if 0.3 < kind < 0.5 else name
    prompt = opening[: draw.randint(20, len(opening))] + "x" * draw.randint(0, 20)
    options: Any = {"adapters": [reference], "max_new_tokens": length, "ignore_eos": True}
    if kind < 0.7:
        answer = await client.generate(prompt, **options)
        ids = _ids(answer)
    else:
        async with client.stream(prompt, **options) as stream:
            ids = [token.token_id async for delta in stream for token in delta.tokens]
        answer = stream.final
    _note(canaries, answer, ids, [canaries.tokens[answer.adapters[0].digest]] * length, may_be)


def _note(canaries: Canaries, answer: Answer, ids: list[int], expected: list[int], may_be: set[str]) -> None:
    digest = answer.adapters[0].digest if answer.adapters else ""
    canaries.answers[digest] += 1
    canaries.cached_tokens += answer.usage.cached_prompt_tokens
    if ids != expected or digest not in may_be:
        canaries.wrong.append(f"{digest or 'base'}: {ids}, not {expected}")


def _ids(answer: Answer) -> list[int]:
    return [token.token_id for token in answer.completions[0].tokens]


async def _move(client: AsyncClient, canaries: Canaries, draw: random.Random) -> None:
    """Nobody else moves that tag: it is where it was left."""
    current, digests = next(iter(canaries.tokens)), list(canaries.tokens)
    while True:
        to = draw.choice(digests)
        try:
            await client.update_tag(MOVING, "latest", to, expected_digest=current)
        except Aborted as error:
            raise AssertionError("nobody else moves this tag") from error
        current = to
        canaries.moves += 1
        await asyncio.sleep(0.02)


async def _unload(client: AsyncClient, canaries: Canaries) -> None:
    while True:
        for name in canaries.digests:
            canaries.unloaded += (await client.unload(name)).found
            await asyncio.sleep(0.01)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--adapters", type=int, default=64)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--planted", action="store_true", help="with a server that confuses pages: to be found out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="canaries-") as name:
        directory = Path(name)
        model = write_tiny_model(directory / "tiny")
        with planted_bugs.pages_of_anybody() if options.planted else contextlib.nullcontext():
            server = launch(directory, command(directory / "tiny", directory / "registry", *SLOTS))
        with contextlib.ExitStack() as stack:
            stack.callback(server.end)
            canaries, started = publish_canaries(server, model, directory, options.adapters), time.monotonic()
            asyncio.run(sing(server.ready["grpc"], canaries, options.requests, seed=options.seed))
            seconds = time.monotonic() - started
            evicted = server.metric("hotshoe_adapter_evictions_total")
    print(*canaries.wrong[:8], sep="\n")
    print(
        f"{canaries.answers.total()} answers of {len(canaries.answers)} in {seconds:.0f} s, {evicted:.0f} evictions, "
        f"{canaries.unloaded} unloaded, {canaries.moves} moves of the tag, {canaries.cached_tokens} prompt tokens from "
        f"pages that were there: {len(canaries.wrong)} wrong"
    )
    return int(bool(canaries.wrong) != options.planted)


if __name__ == "__main__":
    sys.exit(main())
