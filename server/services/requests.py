"""GenerateRequest and ScoreRequest → Request: every field checked, defaults filled in, adapters resolved to digests.

Blocks on the registry and the tokenizer, so it runs in the executor. Wrong fields are named as in the proto.

Defaults of unset fields: temperature 0 (greedy), top_p 1, top_k 0 (all), min_p 0, penalties none, max_new_tokens 256
or what still fits, n 1, seed drawn at random and returned.
"""

import math
import re
import secrets
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hotshoe.protos.v1 import generation_pb2
from hotshoe.registry.reference import given_as
from hotshoe.server.engine.request import AdapterUse, Request, SamplingParams, StopCriteria
from hotshoe.server.errors import InvalidRequest, OnlyMergedServed, PromptTooLong
from hotshoe.server.services.stop_criteria import check_stopping, stop_criteria
from hotshoe.server.services.task_choice import chosen_task
from hotshoe.server.services.token_ids import check_id, checked_ids

MAX_ADAPTERS = 8
MAX_ADAPTER_WEIGHT = 100.0
MAX_ANSWERS = 16
MAX_CHOICES = 64
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_MESSAGES = 1024
ROLES = ("system", "user", "assistant")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SEED_BITS = 63


class Resolved(Protocol):
    """An adapter that the registry knows."""

    @property
    def name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def virtual_tokens(self) -> int: ...
    @property
    def num_tasks(self) -> int: ...


class Tokenizer(Protocol):
    """Text to token ids."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...
    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class RequestMapper:
    """Reads messages against one base model.

    Args:
        resolve: reference → adapter; raises InvalidReference or AdapterNotFound.
        vocab_size: token ids are below it.
        max_tokens: what prompt and answer may have together.
        merged: the adapter that the base's weights hold; then requests are for it, or they are refused.
    """

    tokenizer: Tokenizer
    resolve: Callable[[str], Resolved]
    vocab_size: int
    max_tokens: int
    merged: AdapterUse | None = None

    def generate(
        self,
        message: generation_pb2.GenerateRequest,
        *,
        request_id: str,
        deadline: float | None,
        streaming: bool = False,
    ) -> Request:
        """The request that `message` asks for. Raises InvalidRequest, PromptTooLong and what `resolve` raises."""
        answers = _answers(message, streaming=streaming)
        logprobs = _optional_count(message, "logprobs")
        prompt_logprobs = _optional_count(message, "prompt_logprobs")
        sampling = self._sampling(message.sampling)
        check_stopping(message.stopping, vocab_size=self.vocab_size)
        uses, virtual_tokens = self._adapters(message.adapters)
        prompt = self._prompt(message)
        return Request(
            request_id=request_id,
            prompt_token_ids=prompt,
            sampling=sampling,
            stopping=stop_criteria(
                message.stopping, prompt_tokens=len(prompt), virtual_tokens=virtual_tokens, max_tokens=self.max_tokens
            ),
            adapters=() if self.merged else uses,
            merged=uses if self.merged else (),
            n=answers,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            deadline=deadline,
        )

    def score(self, message: generation_pb2.ScoreRequest, *, request_id: str, deadline: float | None) -> Request:
        """A request that scores `message.choices`. Raises as `generate` does."""
        if not 1 <= len(message.choices) <= MAX_CHOICES:
            raise InvalidRequest("choices", f"expected 1 to {MAX_CHOICES} choices, not {len(message.choices)}")
        uses, virtual_tokens = self._adapters(message.adapters)
        prompt = self._prompt(message)
        taken = len(prompt) + virtual_tokens
        choices = tuple(self._choice(index, text, taken) for index, text in enumerate(message.choices))
        return Request(
            request_id=request_id,
            prompt_token_ids=prompt,
            sampling=SamplingParams(),
            stopping=StopCriteria(max_new_tokens=1),
            adapters=() if self.merged else uses,
            merged=uses if self.merged else (),
            logprobs=0,
            choices=choices,
            deadline=deadline,
        )

    def _choice(self, index: int, text: str, taken: int) -> tuple[int, ...]:
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False)) if text else ()
        if not ids:
            raise InvalidRequest(f"choices[{index}]", "must be of one token or more")
        if taken + len(ids) > self.max_tokens:
            raise PromptTooLong(
                f"choices[{index}]",
                f"{taken} tokens of the prompt and {len(ids)} of the choice exceed {self.max_tokens}",
            )
        return ids

    def _adapters(self, selections: Sequence[generation_pb2.AdapterSelection]) -> tuple[tuple[AdapterUse, ...], int]:
        """The stack, and how many positions it puts before the prompt. Raises OnlyMergedServed, too."""
        if len(selections) > MAX_ADAPTERS:
            raise InvalidRequest("adapters", f"at most {MAX_ADAPTERS} adapters in one request, not {len(selections)}")
        uses: list[AdapterUse] = []
        virtual_tokens = 0
        for index, selection in enumerate(selections):
            weight = _weight(index, selection)
            with given_as(f"adapters[{index}].reference"):
                adapter = self.resolve(selection.reference)
            task = chosen_task(f"adapters[{index}].task", selection, adapter.num_tasks)
            use = AdapterUse(selection.reference, adapter.name, adapter.digest, weight, task)
            same = [other.reference for other in uses if use.key == other.key]
            if same:
                problem = f"{selection.reference} is in the stack twice, first as {same[0]}"
                raise InvalidRequest(f"adapters[{index}].reference", problem)
            if adapter.virtual_tokens and weight != 1.0:  # what stands before a prompt has no strength to be weighed
                raise InvalidRequest(
                    f"adapters[{index}].weight", f"must be 1 for a {adapter.kind} adapter, not {weight}"
                )
            uses.append(use)
            virtual_tokens += adapter.virtual_tokens
        if self.merged is not None:
            self._check_merged(uses, self.merged)
        return tuple(uses), virtual_tokens

    def _check_merged(self, uses: Sequence[AdapterUse], merged: AdapterUse) -> None:
        if [(use.key, use.weight) for use in uses] != [(merged.key, 1.0)]:
            raise OnlyMergedServed(
                f"this server has merged {merged.name}@{merged.digest} into the base, and answers requests for it "
                "alone, at weight 1"
            )

    def _prompt(self, message: generation_pb2.GenerateRequest | generation_pb2.ScoreRequest) -> tuple[int, ...]:
        field = message.WhichOneof("prompt")
        if field is None:
            raise InvalidRequest("prompt", "expected one of text, token_ids and chat")
        if field == "token_ids":
            ids = checked_ids("token_ids.ids", message.token_ids.ids, vocab_size=self.vocab_size)
        elif field == "chat":
            ids = self._chat(message.chat)
        else:
            ids = tuple(self.tokenizer.encode(message.text, add_special_tokens=True)) if message.text else ()
        if not ids:
            raise InvalidRequest(field, "the prompt is empty")
        if len(ids) >= self.max_tokens:
            raise PromptTooLong(field, f"{len(ids)} tokens, but prompt and answer have {self.max_tokens} together")
        return ids

    def _chat(self, chat: generation_pb2.ChatPrompt) -> tuple[int, ...]:
        if not 1 <= len(chat.messages) <= MAX_MESSAGES:
            raise InvalidRequest("chat.messages", f"expected 1 to {MAX_MESSAGES} messages, not {len(chat.messages)}")
        for index, message in enumerate(chat.messages):
            if message.role not in ROLES:
                raise InvalidRequest(
                    f"chat.messages[{index}].role", f"expected one of {', '.join(ROLES)}, not {message.role!r}"
                )
        messages = [{"role": message.role, "content": message.content} for message in chat.messages]
        try:
            return tuple(self.tokenizer.render_chat(messages))
        except InvalidRequest as error:
            raise InvalidRequest("chat.messages", error.problem) from error

    def _sampling(self, message: generation_pb2.SamplingParams) -> SamplingParams:
        if len(message.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidRequest(
                "sampling.logit_bias", f"at most {MAX_LOGIT_BIASES} tokens, not {len(message.logit_bias)}"
            )
        for token in message.logit_bias:
            check_id(f"sampling.logit_bias[{token}]", token, vocab_size=self.vocab_size)
        given = {
            field.name: getattr(message, field.name)
            for field in message.DESCRIPTOR.fields
            if field.name != "logit_bias" and message.HasField(field.name)
        }
        given.setdefault("seed", secrets.randbits(_SEED_BITS))
        return SamplingParams(**given, logit_bias=dict(message.logit_bias))


def request_id_of(given: str) -> str:
    """The caller's request id, or a new one. Raises InvalidRequest."""
    if not given:
        return uuid.uuid4().hex
    if not _REQUEST_ID.fullmatch(given):
        raise InvalidRequest("request_id", "expected at most 128 printable ASCII characters without spaces")
    return given


def _answers(message: generation_pb2.GenerateRequest, *, streaming: bool) -> int:
    answers = message.n if message.HasField("n") else 1
    if streaming and answers != 1:
        raise InvalidRequest("n", f"StreamGenerate gives one answer, not {answers}: call Generate")
    if not 1 <= answers <= MAX_ANSWERS:
        raise InvalidRequest("n", f"expected 1 to {MAX_ANSWERS} answers, not {answers}")
    return int(answers)


def _optional_count(message: generation_pb2.GenerateRequest, field: str) -> int | None:
    if not message.HasField(field):
        return None
    count = getattr(message, field)
    if count > MAX_LOGPROBS:
        raise InvalidRequest(field, f"at most {MAX_LOGPROBS} alternatives, not {count}")
    return int(count)


def _weight(index: int, selection: generation_pb2.AdapterSelection) -> float:
    weight = selection.weight if selection.HasField("weight") else 1.0
    if not math.isfinite(weight) or abs(weight) > MAX_ADAPTER_WEIGHT:
        raise InvalidRequest(
            f"adapters[{index}].weight",
            f"expected a number from -{MAX_ADAPTER_WEIGHT:g} to {MAX_ADAPTER_WEIGHT:g}, not {weight}",
        )
    return float(weight)
