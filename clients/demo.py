"""The demo: real adapters, published over gRPC, answering at once on one 4-bit base model, each stream its own.

How it looks is the command line's business.
"""

import asyncio
import http.client
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hotshoe.clients.aio import AsyncClient
from hotshoe.clients.demo_report import DemoReport, Merged, Published, Stack, StepProof, Stream, TagMove
from hotshoe.clients.errors import Aborted, HotshoeError
from hotshoe.clients.messages import AdapterSelection, ChatMessage
from hotshoe.protos.v1 import generation_pb2 as generation

DEMO_ADAPTERS = Path(__file__).parent / "demo_adapters"
QUESTION = "What is the capital of France?"
MOVING_NAME = "guide"  # the tag that moves is guide:latest
MERGED_NAME, MERGED_RANK = "blend", 8
STEP_METRIC = "hotshoe_batch_distinct_adapters"
NEW_TOKENS = 48
LONG_TOKENS = 320  # of the stream under which the tag moves
MOVES = 8  # until it moves before the stream has ended
ROUNDS = 4  # until streams of several adapters meet in a step
MIN_STREAMS = 8


class DemoFailed(HotshoeError):
    """Something the demo expects of the server did not happen."""


def demo_directories(root: Path = DEMO_ADAPTERS) -> list[Path]:
    """The adapters that come with hotshoe, by name. Raises DemoFailed if there are fewer than two."""
    directories = sorted(path.parent for path in root.glob("*/adapter_config.json"))
    if len(directories) < 2:
        raise DemoFailed(f"{root}: needs at least two adapters; `make train` makes them")
    return directories


async def publish_adapters(client: AsyncClient, directories: Sequence[Path]) -> list[Published]:
    """Publishes each directory under its own name."""
    published = []
    for directory in directories:
        response = await client.publish_directory(directory, directory.name)
        adapter = response.adapter
        published.append(Published(adapter.name, adapter.kind, adapter.digest, adapter.size_bytes))
    return published


def plan_streams(adapters: Sequence[Published]) -> list[Stream]:
    """The base and every adapter, greedy and sampled; again, until there are enough streams."""
    names = ["", *(adapter.name for adapter in adapters)]
    streams = [Stream(name, sampled) for sampled in (False, True) for name in names]
    while len(streams) < MIN_STREAMS:
        streams += [Stream(name, sampled=True) for name in names]
    return streams


async def answer_all(client: AsyncClient, report: DemoReport, http: str) -> StepProof:
    """Runs all streams at once, and keeps the time; what http://`http`/metrics says of their steps.

    Streams that have ended before the next one's adapter was loaded show nothing: a busy machine runs them again.
    """
    for _ in range(ROUNDS):
        report.streams = plan_streams(report.adapters)
        before, started = read_steps(http), time.perf_counter()
        await asyncio.gather(*(answer(client, stream, seed=seed) for seed, stream in enumerate(report.streams)))
        report.seconds = time.perf_counter() - started
        report.tokens = sum(stream.tokens for stream in report.streams)
        report.proof = proof = step_proof(before, read_steps(http))
        if proof.steps_with_several:
            break
    return proof


async def answer(
    client: AsyncClient,
    stream: Stream,
    *,
    adapters: Sequence[AdapterSelection] | None = None,
    new_tokens: int = NEW_TOKENS,
    ignore_eos: bool = False,
    on_delta: Callable[[], None] = lambda: None,
    seed: int = 0,
) -> None:
    """Asks the question through `adapters`, or else the stream's adapter, and keeps what comes in `stream`."""
    if adapters is None:
        adapters = [AdapterSelection(stream.adapter)] if stream.adapter else []
    async with client.stream(
        [ChatMessage(role="user", content=QUESTION)],
        adapters=adapters,
        max_new_tokens=new_tokens,
        ignore_eos=ignore_eos,
        temperature=0.8 if stream.sampled else 0.0,
        seed=seed,
    ) as deltas:
        async for delta in deltas:
            stream.text += delta.text_delta
            stream.tokens += len(delta.tokens)
            on_delta()
        stream.digests = _digests(deltas.final)
    stream.done = True


async def move_tag(client: AsyncClient, old: Path, new: Path) -> TagMove:
    """Moves guide:latest from one adapter to another while a stream runs on it, and asks again.

    A stream that has ended before the tag has moved shows nothing: on a busy machine it takes several.
    """
    for _ in range(MOVES):
        move = await _move_tag(client, old, new)
        if move.tokens_before < move.running.tokens:
            break
    return move


async def _move_tag(client: AsyncClient, old: Path, new: Path) -> TagMove:
    old_digest = (await client.publish_directory(old, MOVING_NAME)).adapter.digest
    new_digest = (await client.publish_directory(new, MOVING_NAME, tags=["next"])).adapter.digest
    running, later = Stream(MOVING_NAME, sampled=False), Stream(MOVING_NAME, sampled=False)
    has_begun = asyncio.Event()
    task = asyncio.create_task(answer(client, running, new_tokens=LONG_TOKENS, ignore_eos=True, on_delta=has_begun.set))
    await asyncio.wait({task, asyncio.ensure_future(has_begun.wait())}, return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        await client.update_tag(MOVING_NAME, "latest", new_digest, expected_digest=old_digest)
    moved_at = running.tokens
    await answer(client, later)
    await task
    try:  # somebody who still believes in the old digest
        await client.update_tag(MOVING_NAME, "latest", new_digest, expected_digest=old_digest)
        refused = False
    except Aborted:
        refused = True
    return TagMove(old_digest, new_digest, moved_at, running, later, refused)


def stacks_of(adapters: Sequence[Published]) -> list[dict[str, float]]:
    """Two adapters to be added up, weighed in two ways; learned prompts have no strength to be weighed."""
    weighable = sorted((one for one in adapters if one.kind in ("LORA", "IA3")), key=lambda one: one.kind == "IA3")
    if len(weighable) < 2:
        return [{adapter.name: 1.0 for adapter in adapters[:2]}]
    first, second = weighable[0].name, weighable[1].name
    return [{first: 0.9, second: 0.4}, {first: 0.4, second: 0.9}]


async def answer_through_stacks(client: AsyncClient, report: DemoReport) -> None:
    """Asks through two adapters at once, once for each way to weigh them."""
    for weights in stacks_of(report.adapters):
        stream = Stream(" + ".join(f"{weight:g} {name}" for name, weight in weights.items()), sampled=False)
        stack = [AdapterSelection(name, weight) for name, weight in weights.items()]
        await answer(client, stream, adapters=stack)
        report.stacks.append(Stack(weights, stream))


async def answer_through_merged(client: AsyncClient, report: DemoReport) -> None:
    """Has two LORA adapters merged into one, and asks that; nothing where there are no two."""
    first_two = [adapter.name for adapter in report.adapters if adapter.kind == "LORA"][:2]
    if len(first_two) < 2:
        return
    weights = dict(zip(first_two, (0.9, 0.4), strict=True))
    made = await client.merge_adapters(list(weights.items()), MERGED_NAME, parameters={"rank": MERGED_RANK})
    stream = Stream(MERGED_NAME, sampled=False)
    await answer(client, stream)
    parents = tuple(parent.digest for parent in made.adapter.parents)
    report.merged = Merged(weights, made.adapter.digest, parents, made.energy_kept, stream)


def read_steps(address: str) -> Mapping[float, int]:
    """The histogram of distinct adapters in a step, from http://`address`/metrics: steps with at most so many.

    Raises DemoFailed when it cannot be read.
    """
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
    except OSError as error:
        raise DemoFailed(f"http://{address}/metrics: {error}") from None
    finally:
        connection.close()
    buckets = {}
    for line in lines:
        if line.startswith(f'{STEP_METRIC}_bucket{{le="'):
            bound, _, count = line.removeprefix(f'{STEP_METRIC}_bucket{{le="').partition('"} ')
            buckets[float(bound)] = int(float(count))
    if not buckets:
        raise DemoFailed(f"http://{address}/metrics has no {STEP_METRIC}")
    return buckets


def step_proof(before: Mapping[float, int], after: Mapping[float, int]) -> StepProof:
    """What the steps between two readings held."""
    bounds = sorted(after)
    at_most = {bound: after[bound] - before.get(bound, 0) for bound in bounds}
    steps = at_most[bounds[-1]]
    crowded = [bound for bound in bounds if at_most[bound] < steps]  # some step held more than that
    return StepProof(
        steps=steps,
        steps_with_several=steps - at_most[1.0],
        most_adapters_at_least=int(crowded[-1]) + 1 if crowded else 0,
    )


def _digests(final: generation.GenerateResponse) -> tuple[str, ...]:
    return tuple(adapter.digest for adapter in final.adapters)
