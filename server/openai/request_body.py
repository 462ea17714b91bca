"""OpenAI's JSON → the wire's messages. Fields are named as they stand in the JSON; what is not known is refused.

`model` names the base model or an adapter: "team/pirate:v1", "team/pirate@sha256:…", "team/skills#2" for one of its
tasks. Beside OpenAI's fields there are vLLM's (top_k, min_p, repetition_penalty, min_tokens, stop_token_ids,
ignore_eos, and those of `format_body`) and `adapters`, more of a stack: [{"reference": …, "weight": …, "task": …}].

Defaults are OpenAI's: temperature 1, top_p 1; 16 tokens of a completion, and what the server gives a chat.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.openai.format_body import FORMAT_FIELDS, output_format

BASE = "base"
MAX_PROMPTS = 64
COMPLETION_TOKENS = 16
_UINT32, _UINT64 = 1 << 32, 1 << 64

_T = TypeVar("_T")

_SAMPLING = {
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "min_p": float,
    "presence_penalty": float,
    "frequency_penalty": float,
    "repetition_penalty": float,
    "seed": int,
}
_COMMON = {
    "model", "adapters", "stream", "stream_options", "n", "stop", "stop_token_ids", "logit_bias", "max_tokens",
    "min_tokens", "ignore_eos", "request_id", "logprobs", *_SAMPLING, *FORMAT_FIELDS,
}  # fmt: skip
# Of no effect on the answer.
_IDLE = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Those that ask for what is not done here, and the value that asks for nothing.
_UNSERVED: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "parallel_tool_calls": (None, True, False),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "suffix": (None, ""),
    "best_of": (None, 1),
}


def chat_request(body: Mapping[str, Any], base_model: str) -> generation_pb2.GenerateRequest:
    """The request of /v1/chat/completions. Raises InvalidRequest."""
    _check_fields(body, _COMMON | {"messages", "top_logprobs", "max_completion_tokens"})
    request = _request(body, base_model)
    messages = _typed(body, "messages", list, "a list of messages")
    if not messages:
        raise InvalidRequest("messages", "expected one message or more")
    for index, message in enumerate(messages):
        request.chat.messages.append(_message(f"messages[{index}]", message))
    if body.get("max_completion_tokens") is not None:
        request.stopping.max_new_tokens = _integer(body, "max_completion_tokens", below=_UINT32)
    elif body.get("max_tokens") is not None:
        request.stopping.max_new_tokens = _integer(body, "max_tokens", below=_UINT32)
    if _flag(body, "logprobs"):
        request.logprobs = _integer(body, "top_logprobs", below=_UINT32) if body.get("top_logprobs") else 0
    elif body.get("top_logprobs"):
        raise InvalidRequest("top_logprobs", "needs logprobs: true")
    return request


def completion_requests(body: Mapping[str, Any], base_model: str) -> list[generation_pb2.GenerateRequest]:
    """The requests of /v1/completions, one of each prompt. Raises InvalidRequest."""
    _check_fields(body, _COMMON | {"prompt", "echo"})
    request = _request(body, base_model)
    request.stopping.max_new_tokens = (
        COMPLETION_TOKENS if body.get("max_tokens") is None else _integer(body, "max_tokens", below=_UINT32)
    )
    if body.get("logprobs") is not None:
        request.logprobs = _integer(body, "logprobs", below=_UINT32)
    if echoes(body):
        request.prompt_logprobs = request.logprobs
        # The prompt alone cannot be asked for: one token is made, and not told.
        request.stopping.max_new_tokens = max(1, request.stopping.max_new_tokens)
    return [_with_prompt(request, prompt) for prompt in _prompts(body.get("prompt"))]


def echoes(body: Mapping[str, Any]) -> bool:
    """Whether a completion begins with its prompt."""
    return _flag(body, "echo")


def streams(body: Mapping[str, Any]) -> bool:
    """Whether the answer is to come as events."""
    return _flag(body, "stream")


def streams_usage(body: Mapping[str, Any]) -> bool:
    """Whether one more event, at the end, is to tell the usage."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or options.keys() - {"include_usage", "continuous_usage_stats"}:
        raise InvalidRequest("stream_options", 'expected {"include_usage": true}')
    return _flag(options, "include_usage")


def _request(body: Mapping[str, Any], base_model: str) -> generation_pb2.GenerateRequest:
    """All but the prompt, and what the two have each in its own way."""
    request = generation_pb2.GenerateRequest(adapters=_adapters(body, base_model))
    request.sampling.temperature = 1.0
    for name, kind in _SAMPLING.items():
        if body.get(name) is not None:
            value = _integer(body, name, below=_UINT64) if kind is int and name == "seed" else _number(body, name, kind)
            _set(request.sampling, name, value)
    for token, bias in (_typed(body, "logit_bias", dict, "token ids and their biases") or {}).items():
        if not _is_uint32(token):
            raise InvalidRequest("logit_bias", f"{token[:80]!r} is not a token id")
        request.sampling.logit_bias[int(token)] = _number({f"logit_bias[{token}]": bias}, f"logit_bias[{token}]", float)
    stop = body.get("stop")
    request.stopping.stop.extend(_texts("stop", [stop] if isinstance(stop, str) else stop or []))
    request.stopping.stop_token_ids.extend(_token_ids("stop_token_ids", body.get("stop_token_ids") or []))
    request.stopping.ignore_eos = _flag(body, "ignore_eos")
    if body.get("min_tokens") is not None:
        request.stopping.min_new_tokens = _integer(body, "min_tokens", below=_UINT32)
    if body.get("n") is not None:
        request.n = _integer(body, "n", below=_UINT32)
    if (asked := output_format(body)) is not None:
        request.format.CopyFrom(asked)
    request.request_id = _typed(body, "request_id", str, "a text") or ""
    return request


def _adapters(body: Mapping[str, Any], base_model: str) -> list[generation_pb2.AdapterSelection]:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest("model", f"expected {BASE!r}, {base_model!r} or an adapter, such as 'name:tag'")
    selections = []
    if model not in (BASE, base_model):
        reference, mark, task = _encodable("model", model).partition("#")
        if mark and not _is_uint32(task):
            raise InvalidRequest("model", "what follows # must be a whole number, one of the adapter's tasks")
        selections.append(generation_pb2.AdapterSelection(reference=reference, task=int(task) if mark else None))
    for index, entry in enumerate(_typed(body, "adapters", list, "a list") or ()):
        where = f"adapters[{index}]"
        if not isinstance(entry, dict) or entry.keys() - {"reference", "weight", "task"}:
            raise InvalidRequest(where, 'expected {"reference": "name:tag", "weight": 1.0, "task": 0}')
        selection = generation_pb2.AdapterSelection(reference=_typed(entry, "reference", str, "a text") or "")
        if entry.get("weight") is not None:
            selection.weight = _number({f"{where}.weight": entry["weight"]}, f"{where}.weight", float)
        if entry.get("task") is not None:
            selection.task = _integer({f"{where}.task": entry["task"]}, f"{where}.task", below=_UINT32)
        selections.append(selection)
    return selections


def _message(where: str, message: Any) -> generation_pb2.ChatMessage:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise InvalidRequest(where, 'expected {"role": …, "content": …}')
    if unknown := sorted(message.keys() - {"role", "content", "name", "refusal", "annotations"}):
        if any(message[name] for name in unknown):
            raise InvalidRequest(f"{where}.{unknown[0][:80]}", "is not served here: messages have a role and a content")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        if len(parts) != len(content):
            raise InvalidRequest(f"{where}.content", "expected parts of type text")
        content = "".join(_texts(f"{where}.content", [part.get("text") for part in parts]))
    if not isinstance(content, str):
        raise InvalidRequest(f"{where}.content", "expected a text, or parts of type text")
    role = _encodable(f"{where}.role", message["role"])
    return generation_pb2.ChatMessage(role=role, content=_encodable(f"{where}.content", content))


def _prompts(value: Any) -> list[str | list[int]]:
    """One prompt, or several: texts, or lists of token ids."""
    if isinstance(value, str):
        return [_encodable("prompt", value)]
    if isinstance(value, list) and value and all(isinstance(item, int) for item in value):
        return [_token_ids("prompt", value)]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PROMPTS:
        raise InvalidRequest("prompt", f"expected a text, a list of token ids, or 1 to {MAX_PROMPTS} of them in a list")
    prompts: list[str | list[int]] = []
    for index, item in enumerate(value):
        where = f"prompt[{index}]"
        prompts.append(_encodable(where, item) if isinstance(item, str) else _token_ids(where, item))
    return prompts


def _with_prompt(request: generation_pb2.GenerateRequest, prompt: str | list[int]) -> generation_pb2.GenerateRequest:
    filled = generation_pb2.GenerateRequest()
    filled.CopyFrom(request)
    if isinstance(prompt, str):
        filled.text = prompt
    else:
        filled.token_ids.ids.extend(prompt)
    return filled


def _check_fields(body: Mapping[str, Any], known: set[str]) -> None:
    for name, value in body.items():
        if name in _UNSERVED:
            if value not in _UNSERVED[name]:
                raise InvalidRequest(name, "is not served here")
        elif name not in known | _IDLE and value is not None:
            raise InvalidRequest(name[:80], "unknown")


def _typed(body: Mapping[str, Any], name: str, kind: type[_T], expected: str) -> _T | None:
    value = body.get(name)
    if value is not None and not isinstance(value, kind):
        raise InvalidRequest(name, f"expected {expected}")
    if isinstance(value, str):
        _encodable(name, value)
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequest(name, "expected true or false")
    return bool(value)


def _number(body: Mapping[str, Any], name: str, kind: type[float]) -> float:
    value: object = body[name]
    if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
        raise InvalidRequest(name, f"expected a {'whole ' if kind is int else ''}number")
    return value


def _integer(body: Mapping[str, Any], name: str, *, below: int) -> int:
    value = _number(body, name, int)
    if not 0 <= value < below:
        raise InvalidRequest(name, f"expected a whole number from 0, below {below}")
    return int(value)


def _set(message: Any, name: str, value: float) -> None:
    try:
        setattr(message, name, value)
    except (ValueError, OverflowError):
        raise InvalidRequest(name, f"{value} is out of range") from None


def _is_uint32(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 10 and int(text) < _UINT32


def _texts(name: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InvalidRequest(name, "expected a text, or a list of texts")
    return [_encodable(name, value) for value in values]


def _token_ids(name: str, values: Any) -> list[int]:
    if not isinstance(values, list) or not all(type(value) is int and 0 <= value < _UINT32 for value in values):
        raise InvalidRequest(name, "expected a list of token ids")
    return values


def _encodable(name: str, text: str) -> str:
    """JSON can hold halves of surrogate pairs, which are no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(name, "is not Unicode text") from None
    return text
