"""The wire's messages → OpenAI's JSON."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hotshoe.protos.v1 import generation_pb2

_FINISH = {
    generation_pb2.FINISH_REASON_STOP: "stop",
    generation_pb2.FINISH_REASON_EOS: "stop",
    generation_pb2.FINISH_REASON_LENGTH: "length",
    generation_pb2.FINISH_REASON_TIME_LIMIT: "length",
}
_Tokens = Sequence[generation_pb2.Token]


@dataclass(frozen=True, slots=True)
class Head:
    """What every body of an answer begins with."""

    id: str
    created: int  # seconds since 1970
    model: str  # as the request named it

    def of(self, kind: str) -> dict[str, Any]:
        """`kind`: what OpenAI calls such an object, e.g. "chat.completion"."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def chat_completion(head: Head, response: generation_pb2.GenerateResponse, *, logprobs: bool) -> dict[str, Any]:
    """The answers to a chat; `logprobs`: whether with their tokens' log-probabilities."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": chat_logprobs(answer.tokens) if logprobs else None,
            "finish_reason": finish_reason(answer),
        }
        for index, answer in enumerate(response.completions)
    ]
    return head.of("chat.completion") | {"choices": choices, "usage": usage([response])} | _adapters(response)


def chat_chunk(
    head: Head, delta: dict[str, Any], *, logprobs: dict[str, Any] | None = None, finish: str | None = None
) -> dict[str, Any]:
    """One event of a streamed chat."""
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
    return head.of("chat.completion.chunk") | {"choices": [choice]}


def completion(
    head: Head, responses: Sequence[generation_pb2.GenerateResponse], prompts: Sequence[str | None], *, told: int | None
) -> dict[str, Any]:
    """The answers to each prompt, one prompt's behind the other's.

    Args:
        prompts: the texts that answers begin with; None where they do not.
        told: how many tokens of an answer are told, 0 where a prompt's own were all that was asked for; None: all.
    """
    choices: list[dict[str, Any]] = []
    for response, prompt in zip(responses, prompts, strict=True):
        for answer in response.completions:
            tokens = [*(response.prompt_tokens if prompt is not None else ()), *answer.tokens[:told]]
            text = (prompt or "") + ("" if told == 0 else answer.text)
            choices.append(completion_choice(len(choices), text, tokens, finish_reason(answer)))
    return head.of("text_completion") | {"choices": choices, "usage": usage(responses)} | _adapters(responses[0])


def completion_choice(index: int, text: str, tokens: _Tokens, finish: str | None, offset: int = 0) -> dict[str, Any]:
    """`offset`: of the first token in the whole text. Log-probabilities are told if any token has one."""
    has_some = any(token.HasField("logprob") for token in tokens)
    logprobs = completion_logprobs(tokens, offset) if has_some else None
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}


def chat_logprobs(tokens: Iterable[generation_pb2.Token]) -> dict[str, Any]:
    """Log-probabilities of an answer's tokens, with the alternatives that were asked for, as chats have them."""
    content = [
        {
            "token": token.text,
            "logprob": token.logprob,
            "bytes": list(token.text.encode()),
            "top_logprobs": [
                {"token": other.text, "logprob": other.logprob, "bytes": list(other.text.encode())}
                for other in token.alternatives
            ],
        }
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def completion_logprobs(tokens: _Tokens, offset: int) -> dict[str, Any]:
    """The first token of a prompt has no log-probability: null."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob if token.HasField("logprob") else None for token in tokens],
        "top_logprobs": [
            {other.text: other.logprob for other in token.alternatives} if token.HasField("logprob") else None
            for token in tokens
        ],
        "text_offset": offsets,
    }


def finish_reason(answer: generation_pb2.Completion) -> str:
    return _FINISH[answer.finish_reason]


def usage(responses: Iterable[generation_pb2.GenerateResponse]) -> dict[str, Any]:
    """Tokens of all prompts and of all answers."""
    used = [response.usage for response in responses]
    prompt, answers = sum(one.prompt_tokens for one in used), sum(one.completion_tokens for one in used)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answers,
        "total_tokens": prompt + answers,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached_prompt_tokens for one in used)},
    }


def _adapters(response: generation_pb2.GenerateResponse) -> dict[str, Any]:
    """What the model's name, and more adapters, meant: OpenAI has no such field, and no client minds one more."""
    return {
        "adapters": [
            {"reference": one.reference, "digest": one.digest, "weight": one.weight}
            | ({"task": one.task} if one.HasField("task") else {})
            for one in response.adapters
        ]
    }
