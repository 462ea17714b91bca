"""Sends streaming requests and keeps when each token came. Keeps to itself: bytes in, bytes out, parsed afterwards."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import grpc

from hotshoe.clients.bench import greedy_payload
from hotshoe.clients.channels import GENERATE_SECONDS
from hotshoe.clients.errors import CallError, from_rpc_error
from hotshoe.protos.v1 import generation_pb2 as generation

Prompt = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to be sent."""

    payload: bytes
    prompt_tokens: int
    tenant: str = ""


@dataclass(slots=True)
class Answer:
    """One request's messages as they came; times are time.perf_counter() seconds."""

    ask: Ask
    started: float
    _arrivals: list[float] = field(default_factory=list)
    _messages: list[bytes] = field(default_factory=list)
    ended: float = 0.0
    error: CallError | None = None

    @property
    def num_messages(self) -> int:
        return len(self._messages)

    @property
    def has_begun(self) -> bool:
        """Whether some messages came."""
        return self.num_messages >= 3

    def parsed(self) -> "ParsedAnswer":
        """What the messages say: work that waits until no clock runs."""
        messages = [generation.StreamGenerateResponse.FromString(message) for message in self._messages]
        times = [at for at, message in zip(self._arrivals, messages, strict=True) for _ in message.tokens]
        cached = messages[-1].final.usage.cached_prompt_tokens if messages else 0
        return ParsedAnswer(self.ask, self.started, times, cached, self.error)


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """When each of an answer's tokens came."""

    ask: Ask
    started: float
    token_times: list[float]
    cached_prompt_tokens: int
    error: CallError | None

    @property
    def first_token_seconds(self) -> float | None:
        return self.token_times[0] - self.started if self.token_times else None

    def gaps(self) -> list[tuple[float, float]]:
        """(when it ended, seconds) of each pause between two tokens."""
        return [(later, later - earlier) for earlier, later in pairwise(self.token_times)]


class Asker:
    """Makes requests with prompts that never repeat, and sends them over one channel.

    Args:
        words: ordinary token ids, of which prompts are drawn.
        tenant_key: the metadata key under which a request's tenant is sent.
    """

    def __init__(self, channel: Any, words: Sequence[int], *, seed: int = 0, tenant_key: str = "") -> None:
        self.random = random.Random(seed)
        self._words = words
        self._tenant_key = tenant_key
        self._prompts: set[Prompt] = set()
        self._method = channel.unary_stream("/hotshoe.v1.GenerationService/StreamGenerate")

    def prompt(self, tokens: int) -> Prompt:
        """Random ordinary tokens, unlike any prompt before; the prompt must be long enough for that."""
        while (prompt := tuple(self.random.choices(self._words, k=tokens))) in self._prompts:
            pass
        self._prompts.add(prompt)
        return prompt

    def make(self, prompt: Prompt, *, new_tokens: int, adapter: str | None = None, tenant: str = "") -> Ask:
        """A greedy request that only its length ends."""
        return Ask(greedy_payload(prompt, new_tokens=new_tokens, adapter=adapter), len(prompt), tenant)

    async def send(self, ask: Ask) -> Answer:
        """Asks, and waits for the whole answer."""
        answer = Answer(ask, time.perf_counter())
        await self.follow(answer)
        return answer

    async def follow(self, answer: Answer) -> None:
        """Asks, and fills `answer` as it comes; what is there when the task is cancelled stays."""
        metadata = ((self._tenant_key, answer.ask.tenant),) if answer.ask.tenant else ()
        arrived, received = answer._arrivals.append, answer._messages.append
        try:
            async for message in self._method(answer.ask.payload, timeout=GENERATE_SECONDS, metadata=metadata):
                arrived(time.perf_counter())
                received(message)
        except grpc.RpcError as error:
            answer.error = from_rpc_error(error)
        answer.ended = time.perf_counter()

    async def send_all(self, asks: Iterable[Ask], *, at_a_time: int) -> list[Answer]:
        """Sends requests in their order, so many at a time."""
        left = iter(asks)

        async def stream() -> list[Answer]:
            return [await self.send(ask) for ask in left]

        answers = await asyncio.gather(*(stream() for _ in range(at_a_time)))
        return [answer for of_stream in answers for answer in of_stream]


def tokens_per_second(answers: Iterable[Answer]) -> float:
    """Generated tokens over the time from the first request to the last answer."""
    answers = list(answers)
    tokens = sum(len(answer.parsed().token_times) for answer in answers)
    return tokens / (max(answer.ended for answer in answers) - min(answer.started for answer in answers))


def count_errors(answers: Iterable[Answer]) -> dict[str, int]:
    """Failed answers by class."""
    return dict(Counter(type(answer.error).__name__ for answer in answers if answer.error is not None))
