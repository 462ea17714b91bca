"""A closed-loop load generator: so many streams at a time, each asking again as soon as it has its answer.

It shares the machine with the server, so it keeps to itself: requests are serialized before the clock starts, answers
are kept as bytes and parsed after it has stopped.
"""

import asyncio
import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from itertools import count, pairwise
from typing import Any

import grpc

from hotshoe.clients.aio import AsyncClient
from hotshoe.clients.channels import GENERATE_SECONDS, open_aio_channel
from hotshoe.clients.errors import CallError, from_rpc_error
from hotshoe.clients.messages import adapter_selections
from hotshoe.protos.v1 import generation_pb2 as generation

SCHEMA = "hotshoe.bench/1"
BASE = "base"
# Its tokens are what prompts are drawn from: ordinary ones of whatever tokenizer the server has.
ORDINARY_TEXT = """The harbour lay quiet before the storm. Seven boats were tied to the long wooden pier, and on each of
them someone was counting ropes, closing hatches or looking at the sky. A teacher walked past with her class and asked
what the clouds meant; one child said rain, another said money, because the market always sold out before bad weather.
In the town, people carried bread, candles, books and batteries home. The library stayed open late. Its old clock had
been repaired twice this year, yet it still struck thirteen at noon, and nobody wanted to change that any more."""


class Pattern(StrEnum):
    """Which adapter a request uses."""

    FIXED = "fixed"  # each stream keeps its own
    ROUND_ROBIN = "round-robin"  # each request takes the next
    ZIPF = "zipf"  # drawn at random, the k-th adapter with weight 1 / k**exponent


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """What to measure. `adapters` empty, or "base" among them: the base model alone."""

    concurrency: tuple[int, ...] = (1, 8, 16)
    adapters: tuple[str, ...] = ()
    pattern: Pattern = Pattern.ROUND_ROBIN
    zipf_exponent: float = 1.0
    prompt_tokens: int = 64
    new_tokens: int = 64
    requests: int = 0  # of one round; 0: one for each stream
    warmup: int = 1  # rounds that do not count
    rounds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
        if self.requests < 0 or self.warmup < 0:
            raise ValueError("requests, warmup: must be at least 0")
        if not (math.isfinite(self.zipf_exponent) and self.zipf_exponent >= 0):
            raise ValueError(f"zipf_exponent: must be a number of at least 0, not {self.zipf_exponent}")
        if not self.concurrency or min(self.concurrency) < 1:
            raise ValueError("concurrency: must be numbers of at least 1")


@dataclass(frozen=True, slots=True)
class Figures:
    """One round, or the medians of several. Times in seconds; None where nothing was measured."""

    tokens_per_second: float  # generated tokens / time from the first request to the last answer, prefill included
    ttft_p50: float | None
    ttft_p99: float | None
    inter_token_p50: float | None
    inter_token_p99: float | None
    client_cpu: float  # cores that this load generator used


@dataclass(frozen=True, slots=True)
class LevelReport:
    """All rounds at one concurrency."""

    concurrency: int
    median: Figures
    rounds: list[Figures]
    requests: int
    generated_tokens: int
    errors: dict[str, int]  # by class
    first_error: str  # what it said; "" without any


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured, of what, and how."""

    server: dict[str, Any]
    plan: BenchPlan
    levels: list[LevelReport]
    schema: str = SCHEMA

    @property
    def num_errors(self) -> int:
        return sum(sum(level.errors.values()) for level in self.levels)


@dataclass(slots=True)
class _Answer:
    """One request's messages as they came."""

    started: float
    arrivals: list[float] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)
    error: CallError | None = None


@dataclass(slots=True)
class _Round:
    """What one round measured."""

    figures: Figures
    generated_tokens: int
    errors: Counter[str]
    first_error: str
    requests: int


async def run_bench(server: str, plan: BenchPlan, on_round: Callable[[int, int, Figures], None]) -> BenchReport:
    """Measures every level of `plan`; tells `on_round` concurrency, round and figures as they come.

    Levels take turns within each round, so that a slow minute of the machine does not fall on one of them alone.
    """
    async with AsyncClient(server) as client:
        info = await client.model_info()
        if plan.prompt_tokens + plan.new_tokens > info.max_sequence_length:
            lengths = f"{plan.prompt_tokens} and {plan.new_tokens}"
            most = info.max_sequence_length
            raise ValueError(f"prompt_tokens, new_tokens: expected at most {most} together, not {lengths}")
        words = sorted(set((await client.tokenize(ORDINARY_TEXT)).token_ids))
        # As many as fit stay loaded from here on; what a load costs is another question.
        for reference in [name for name in plan.adapters if name != BASE][: info.max_resident_adapters]:
            await client.load(reference)
    measured: dict[int, list[_Round]] = {level: [] for level in plan.concurrency}
    async with open_aio_channel(server) as channel:
        load = _Load(plan, words, channel)
        for number in range(-plan.warmup, plan.rounds):
            for level in _rotated(plan.concurrency, number):
                result = await load.round(level)
                if number >= 0:
                    measured[level].append(result)
                    on_round(level, number + 1, result.figures)
    return BenchReport(server_facts(info), plan, [_level_report(level, rounds) for level, rounds in measured.items()])


def server_facts(info: generation.GetModelInfoResponse) -> dict[str, Any]:
    """What a server says about itself, but for its lists."""
    return {field.name: getattr(info, field.name) for field in info.DESCRIPTOR.fields if not field.is_repeated}


def greedy_payload(prompt: Sequence[int], *, new_tokens: int, adapter: str | None) -> bytes:
    """A StreamGenerateRequest, encoded, for an answer that only its length ends."""
    request = generation.GenerateRequest(
        adapters=adapter_selections([adapter] if adapter else []),
        token_ids=generation.TokenIds(ids=prompt),
        sampling=generation.SamplingParams(temperature=0.0),
        stopping=generation.StopCriteria(max_new_tokens=new_tokens, ignore_eos=True),
    )
    return generation.StreamGenerateRequest(request=request).SerializeToString()


class _Load:
    """Asks, and keeps the time. Prompts never repeat, so the prefix cache does not flatter."""

    def __init__(self, plan: BenchPlan, words: Sequence[int], channel: Any) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._words = words
        self._prompts: set[tuple[int, ...]] = set()
        self._turn = count()
        # Bytes in, bytes out: see the module's docstring.
        self._method = channel.unary_stream("/hotshoe.v1.GenerationService/StreamGenerate")

    async def round(self, concurrency: int) -> _Round:
        """Sends one round of requests, `concurrency` at a time."""
        total = self._plan.requests or concurrency
        payloads = [self._payload(index % concurrency) for index in range(total)]
        cpu, started = time.process_time(), time.perf_counter()
        streams = [self._stream(payloads[first::concurrency]) for first in range(min(concurrency, total))]
        answers = [answer for stream in await asyncio.gather(*streams) for answer in stream]
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return _measure(answers, seconds, cpu)

    async def _stream(self, payloads: Sequence[bytes]) -> list[_Answer]:
        return [await self._ask(payload) for payload in payloads]

    async def _ask(self, payload: bytes) -> _Answer:
        answer = _Answer(started=time.perf_counter())
        arrived, received = answer.arrivals.append, answer.messages.append
        try:
            async for message in self._method(payload, timeout=GENERATE_SECONDS):
                arrived(time.perf_counter())
                received(message)
        except grpc.RpcError as error:
            answer.error = from_rpc_error(error)
        return answer

    def _payload(self, stream: int) -> bytes:
        adapter = self._adapter(stream)
        return greedy_payload(self._prompt(), new_tokens=self._plan.new_tokens, adapter=adapter)

    def _adapter(self, stream: int) -> str | None:
        adapters = self._plan.adapters
        if not adapters:
            return None
        match self._plan.pattern:
            case Pattern.FIXED:
                chosen = adapters[stream % len(adapters)]
            case Pattern.ROUND_ROBIN:
                chosen = adapters[next(self._turn) % len(adapters)]
            case Pattern.ZIPF:
                weights = [rank**-self._plan.zipf_exponent for rank in range(1, len(adapters) + 1)]
                [chosen] = self._random.choices(adapters, weights)
        return None if chosen == BASE else chosen

    def _prompt(self) -> tuple[int, ...]:
        """Random ordinary tokens, unlike any prompt before. Raises ValueError when there are no more."""
        for _ in range(1000):
            prompt = tuple(self._random.choices(self._words, k=self._plan.prompt_tokens))
            if prompt not in self._prompts:
                self._prompts.add(prompt)
                return prompt
        raise ValueError(f"prompt_tokens: {self._plan.prompt_tokens} are too few for prompts that all differ")


def _measure(answers: Sequence[_Answer], seconds: float, cpu_seconds: float) -> _Round:
    """The figures of one round. A failed answer counts as an error and gives no times."""
    first_tokens: list[float] = []
    gaps: list[float] = []
    errors: Counter[str] = Counter()
    generated = 0
    for answer in answers:
        messages = [generation.StreamGenerateResponse.FromString(message) for message in answer.messages]
        generated += sum(len(message.tokens) for message in messages)
        if answer.error is not None:
            errors[type(answer.error).__name__] += 1
            continue
        times = [at for at, message in zip(answer.arrivals, messages, strict=True) if message.tokens]
        first_tokens += [at - answer.started for at in times[:1]]
        gaps += [later - earlier for earlier, later in pairwise(times)]
    figures = Figures(
        tokens_per_second=generated / seconds,
        ttft_p50=percentile(first_tokens, 0.50),
        ttft_p99=percentile(first_tokens, 0.99),
        inter_token_p50=percentile(gaps, 0.50),
        inter_token_p99=percentile(gaps, 0.99),
        client_cpu=cpu_seconds / seconds,
    )
    first_error = next((str(answer.error) for answer in answers if answer.error is not None), "")
    return _Round(figures, generated, errors, first_error, len(answers))


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value below which `share` of `values` lie, interpolated between neighbours; None of none."""
    if not values:
        return None
    ordered = sorted(values)
    position = share * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def _level_report(concurrency: int, rounds: Sequence[_Round]) -> LevelReport:
    figures = [one.figures for one in rounds]
    medians = {name.name: _median(getattr(one, name.name) for one in figures) for name in fields(Figures)}
    return LevelReport(
        concurrency=concurrency,
        median=Figures(**medians),  # type: ignore[arg-type]
        rounds=figures,
        requests=sum(one.requests for one in rounds),
        generated_tokens=sum(one.generated_tokens for one in rounds),
        errors=dict(sum((one.errors for one in rounds), Counter[str]())),
        first_error=next((one.first_error for one in rounds if one.first_error), ""),
    )


def _median(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _rotated(levels: Sequence[int], by: int) -> list[int]:
    start = by % len(levels)
    return [*levels[start:], *levels[:start]]
