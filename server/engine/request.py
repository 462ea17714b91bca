"""A request as the engine knows it: tokens in, tokens out. Text belongs to the event loop."""

import enum
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hotshoe.server.adapters.adapter_key import adapter_key
from hotshoe.server.errors import InvalidRequest

if TYPE_CHECKING:
    from hotshoe.server.model.grammar import Grammar


class FinishReason(enum.Enum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"
    EOS = "eos"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """One adapter of a request's stack, resolved once, at admission."""

    reference: str  # as the caller wrote it
    name: str
    digest: str  # "sha256:<hex>" of the manifest
    weight: float = 1.0
    task: int | None = None  # which of its tasks, if it has any

    @property
    def key(self) -> str:
        """What residency and the prefix cache know it by."""
        return adapter_key(self.digest, self.task)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is drawn; `temperature` 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_range("sampling.temperature", self.temperature, 0.0, 100.0)
        _check_range("sampling.top_p", self.top_p, 0.0, 1.0, low_open=True)
        _check_range("sampling.top_k", self.top_k, 0, 2**31 - 1)
        _check_range("sampling.min_p", self.min_p, 0.0, 1.0)
        _check_range("sampling.repetition_penalty", self.repetition_penalty, 0.0, 100.0, low_open=True)
        _check_range("sampling.presence_penalty", self.presence_penalty, -100.0, 100.0)
        _check_range("sampling.frequency_penalty", self.frequency_penalty, -100.0, 100.0)
        for token, bias in self.logit_bias.items():
            _check_range(f"sampling.logit_bias[{token}]", bias, -1000.0, 1000.0)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class StopCriteria:
    """When an answer ends. Stop strings are the event loop's business; the engine sees token ids only."""

    max_new_tokens: int
    min_new_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    time_limit_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.min_new_tokens > self.max_new_tokens:
            raise InvalidRequest(
                "stopping.min_new_tokens", f"{self.min_new_tokens} is more than max_new_tokens, {self.max_new_tokens}"
            )
        if self.time_limit_seconds is not None:
            _check_range("stopping.time_limit", self.time_limit_seconds, 0.0, 86_400.0, low_open=True)
        if any(not text for text in self.stop):
            raise InvalidRequest("stopping.stop", "a stop string must not be empty")


@dataclass(frozen=True, slots=True)
class Request:
    """One call: one prompt, one adapter stack, one or more answers to it.

    With `choices` it is scored instead: each choice is appended to the prompt, and nothing is generated.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stopping: StopCriteria
    adapters: tuple[AdapterUse, ...] = ()
    merged: tuple[AdapterUse, ...] = ()  # that the caller named, and the base's weights hold already
    tenant: str = ""
    n: int = 1
    logprobs: int | None = None  # alternatives to report for each generated token
    prompt_logprobs: int | None = None
    choices: tuple[tuple[int, ...], ...] = ()
    grammar: "Grammar | None" = None  # what each answer must be
    deadline: float | None = None  # time.monotonic() seconds: past it nobody waits for the answer
    arrival: float = field(default_factory=time.monotonic)

    @property
    def num_answers(self) -> int:
        """Of its answers, or of its scored choices."""
        return len(self.choices) or self.n

    @property
    def named_adapters(self) -> tuple[AdapterUse, ...]:
        """Those that the caller named, wherever they are applied."""
        return (*self.merged, *self.adapters)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token's log-probability, its rank (1 is the likeliest) and the likeliest alternatives."""

    token_id: int
    logprob: float
    rank: int
    alternatives: tuple[tuple[int, float], ...] = ()  # (token_id, logprob), likeliest first


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Seconds, measured by the engine."""

    queued: float
    adapter_load: float
    first_token: float  # from arrival


@dataclass(slots=True)
class AnswerOutput:
    """What one step added to one answer (or choice) of a request.

    The last output of each answer, and no other, has a `finish_reason` or an `error`. A choice gets one output, with
    all its tokens and LENGTH.
    """

    request_id: str
    index: int  # which of the n answers, or which choice
    token_ids: list[int] = field(default_factory=list)  # the end-of-text or stop token that ended it included
    logprobs: list[TokenLogprob] = field(default_factory=list)  # beside token_ids, if asked
    prompt_logprobs: list[TokenLogprob | None] | None = None  # once, with the first output; None for the first token
    cached_prompt_tokens: int = 0  # in every output of an answer
    times: RequestTimes | None = None  # with the first output
    finish_reason: FinishReason | None = None
    error: Exception | None = None  # the answer failed

    @property
    def is_last(self) -> bool:
        """Whether nothing of this answer follows."""
        return self.finish_reason is not None or self.error is not None


def _check_range(name: str, value: float, low: float, high: float, *, low_open: bool = False) -> None:
    inside = math.isfinite(value) and (low < value if low_open else low <= value) and value <= high
    if not inside:
        bracket = "(" if low_open else "["
        raise InvalidRequest(name, f"{value} is outside {bracket}{low}, {high}]")
