"""Python values → the messages of generation and residency. Shared by both clients; does no I/O."""

import json
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypedDict

from hotshoe.clients.errors import Internal
from hotshoe.protos.v1 import generation_pb2 as generation
from hotshoe.protos.v1 import residency_pb2 as residency

CHAT_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class AdapterSelection:
    """One adapter of a request: "name", "name:tag" or "name@sha256:<hex>", and what multiplies its own scale.

    `task` is for adapters that have tasks, and for no others.
    """

    reference: str
    weight: float = 1.0
    task: int | None = None


class ChatMessage(TypedDict):
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Prompt = str | Sequence[int] | Sequence[ChatMessage]
AdapterLike = str | tuple[str, float] | tuple[str, float, int | None] | AdapterSelection
Adapters = str | AdapterSelection | Sequence[AdapterLike]
TierName = Literal["host", "device"]


class GenerateOptions(TypedDict, total=False):
    """Keyword arguments of generate and stream. What is left out takes the server's default; a zero is a zero.

    adapters: none is the base model alone; several are a stack, whose effects add, each times its weight.
    temperature: 0 is greedy.
    seed: same seed, prompt and adapters give the same tokens, whatever else is in the batch.
    stop: strings that end the answer; they are not part of it.
    time_limit: seconds, after which the answer ends as it is.
    json_schema, json_object, regex, choices, lark: what the text must be, whole; one of them. A JSON schema as text or
        as a mapping, any JSON object, a regular expression, one of several texts, a grammar in llguidance's Lark.
    logprobs, prompt_logprobs: alternatives to report beside each token of the answer, of the prompt.
    n: independent answers; not for stream.
    """

    adapters: Adapters
    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    logit_bias: Mapping[int, float]
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    ignore_eos: bool
    time_limit: float
    json_schema: str | Mapping[str, Any]
    json_object: bool
    regex: str
    choices: Sequence[str]
    lark: str
    logprobs: int
    prompt_logprobs: int
    n: int
    request_id: str


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logit_bias",
)
_STOPPING = ("max_new_tokens", "min_new_tokens", "stop", "stop_token_ids", "ignore_eos", "time_limit")
_FORMAT = ("json_schema", "json_object", "regex", "choices", "lark")
_REQUEST = ("logprobs", "prompt_logprobs", "n", "request_id")


def generate_request(prompt: Prompt, options: GenerateOptions) -> generation.GenerateRequest:
    """The message that asks for `prompt` to be continued. Raises TypeError or ValueError that names what is wrong."""
    if unknown := options.keys() - GenerateOptions.__annotations__.keys():
        raise TypeError(
            f"unknown option {', '.join(sorted(unknown))}; there are {', '.join(GenerateOptions.__annotations__)}"
        )
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("stop"), str):
        given["stop"] = [given["stop"]]
    if "time_limit" in given:
        given["time_limit"] = timedelta(seconds=given["time_limit"])
    request = generation.GenerateRequest(
        adapters=adapter_selections(given.get("adapters", ())),
        sampling=_message(generation.SamplingParams, given, _SAMPLING),
        stopping=_message(generation.StopCriteria, given, _STOPPING),
        format=output_format({name: given[name] for name in _FORMAT if name in given}),
        **_prompt_field(prompt),
    )
    for name in _REQUEST:
        if name in given:
            _set(request, name, given[name])
    return request


def output_format(asked: Mapping[str, Any]) -> generation.OutputFormat | None:
    """The message of what a text must be, by the names in GenerateOptions; None if it may be any.

    Raises TypeError or ValueError that names what is wrong.
    """
    asked = {name: value for name, value in asked.items() if (name, value) != ("json_object", False)}
    if len(asked) > 1:
        raise ValueError(f"{' and '.join(asked)}: expected one of them")
    for name, value in asked.items():
        if name == "json_object":
            if value is not True:
                raise TypeError("json_object: must be True or False")
            return generation.OutputFormat(json_object=generation.JsonObject())
        if name == "choices":
            if isinstance(value, str):
                raise TypeError("choices: must be several strings, not one")
            return generation.OutputFormat(choices=generation.Choices(texts=value))
        if name == "json_schema" and not isinstance(value, str):
            value = json.dumps(value, ensure_ascii=False)
        message: generation.OutputFormat = _message(generation.OutputFormat, {name: value}, (name,))
        return message
    return None


def score_request(
    prompt: Prompt, choices: Sequence[str], *, adapters: Adapters, length_normalized: bool, request_id: str
) -> generation.ScoreRequest:
    """The message that asks how likely each of `choices` is after `prompt`."""
    if isinstance(choices, str):
        raise TypeError("choices: must be several strings, not one")
    return generation.ScoreRequest(
        adapters=adapter_selections(adapters),
        choices=choices,
        length_normalized=length_normalized,
        request_id=request_id,
        **_prompt_field(prompt),
    )


def adapter_selections(adapters: Adapters) -> list[generation.AdapterSelection]:
    """One message for each adapter named."""
    return [
        generation.AdapterSelection(reference=reference, weight=weight, task=task)
        for reference, weight, task in map(adapter_parts, several_adapters(adapters))
    ]


def several_adapters(adapters: Adapters) -> Iterable[Any]:
    """Adapters, of which a lone one may be given as it is."""
    return (adapters,) if isinstance(adapters, str | AdapterSelection) else adapters


def adapter_parts(adapter: Any) -> tuple[str, float | None, int | None]:
    """Reference, weight and task, as far as they were given."""
    match adapter:
        case str(reference):
            return reference, None, None
        case (str(reference), float() | int() as weight):
            return reference, weight, None
        case AdapterSelection(reference=reference, weight=weight, task=task) | (
            str(reference),
            float() | int() as weight,
            int() | None as task,
        ):
            return reference, weight, task
    raise TypeError(
        'adapters: each must be "name:tag", a (reference, weight) pair, which may have a task, or an AdapterSelection, '
        f"not {adapter!r}"
    )


def load_request(reference: str, *, tier: TierName, pin: bool, task: int | None = None) -> residency.LoadAdapterRequest:
    """The message that asks for an adapter to be loaded into `tier`."""
    tiers = {"host": residency.TIER_HOST, "device": residency.TIER_DEVICE}
    if tier not in tiers:
        raise ValueError(f"tier: must be one of {', '.join(tiers)}, not {tier!r}")
    return residency.LoadAdapterRequest(reference=reference, tier=tiers[tier], pin=pin, task=task)


def loaded_adapter(last: residency.LoadAdapterResponse | None) -> residency.ResidentAdapter:
    """The adapter of a load's last message. Raises Internal when the load ended without being ready."""
    if last is None or last.stage != residency.LoadAdapterResponse.STAGE_READY:
        raise Internal("the server ended the load before the adapter was ready")
    return last.adapter


def _prompt_field(prompt: Prompt) -> dict[str, Any]:
    """The member of the request's `prompt` that holds it."""
    if isinstance(prompt, str):
        return {"text": prompt}
    if not isinstance(prompt, Iterable):
        raise TypeError(f"prompt: must be text, token ids or chat messages, not {type(prompt).__name__}")
    items: list[Any] = list(prompt)
    if not items:
        raise ValueError("prompt: an empty list is neither token ids nor a conversation")
    if isinstance(items[0], Mapping):
        return {"chat": generation.ChatPrompt(messages=[_chat_message(item) for item in items])}
    try:
        return {"token_ids": generation.TokenIds(ids=[operator.index(item) for item in items])}
    except (TypeError, ValueError) as error:
        raise TypeError(f"prompt: a list must hold token ids, each at least 0, or chat messages: {error}") from None


def _chat_message(item: Any) -> generation.ChatMessage:
    if not isinstance(item, Mapping) or item.keys() != {"role", "content"}:
        raise ValueError(f'prompt: a chat message has "role" and "content", unlike {item!r}')
    if item["role"] not in CHAT_ROLES:
        raise ValueError(f"prompt: role must be one of {', '.join(CHAT_ROLES)}, not {item['role']!r}")
    return generation.ChatMessage(role=item["role"], content=item["content"])


def _message(message_class: type[Any], given: Mapping[str, Any], names: Iterable[str]) -> Any:
    """A message of those of `names` that are given; None if none is, so that the field stays unset."""
    present = [name for name in names if name in given]
    if not present:
        return None
    message = message_class()
    for name in present:
        _set(message, name, given[name])
    return message


def _set(message: Any, name: str, value: Any) -> None:
    """Sets one field; an error names it."""
    try:
        message.MergeFrom(type(message)(**{name: value}))
    except (TypeError, ValueError, OverflowError) as error:
        raise type(error)(f"{name}: {value!r} does not fit: {error}") from None
