"""Refuses, before it is queued, a request that could never be served; the message names the field."""

from collections.abc import Iterable

from hotshoe.server.config import EngineConfig
from hotshoe.server.engine.request import Request
from hotshoe.server.errors import InvalidRequest, PromptTooLong


def check_request(
    request: Request,
    config: EngineConfig,
    *,
    kv_tokens: int,
    vocab_size: int,
    max_sequence_length: int,
    adapter_slots: int,
) -> None:
    """Raises InvalidRequest, or PromptTooLong if prompt and answer fit neither the model nor the cache.

    Virtual tokens of adapters are not known yet; a request that does not fit because of them fails when it starts.
    """
    if not request.prompt_token_ids:
        raise InvalidRequest("prompt", "is empty; at least one token is needed")
    _check_tokens("prompt.token_ids", request.prompt_token_ids, vocab_size)
    _check_tokens("sampling.logit_bias", request.sampling.logit_bias, vocab_size)
    _check_tokens("stopping.stop_token_ids", request.stopping.stop_token_ids, vocab_size)
    if len({use.key for use in request.adapters}) > adapter_slots:
        raise InvalidRequest("adapters", f"{len(request.adapters)} were asked for, but there are {adapter_slots} slots")
    for name in ("logprobs", "prompt_logprobs"):
        count = getattr(request, name)
        if count is not None and not 0 <= count <= vocab_size:
            raise InvalidRequest(name, f"{count} is outside [0, {vocab_size}], the size of the vocabulary")
    if request.choices:
        _check_choices(request, vocab_size)
        longest = max(len(choice) for choice in request.choices)
    else:
        _check_generation(request, config)
        longest = request.stopping.max_new_tokens
    _check_length(len(request.prompt_token_ids), longest, kv_tokens=kv_tokens, max_sequence_length=max_sequence_length)


def _check_generation(request: Request, config: EngineConfig) -> None:
    if request.n < 1 or request.n > config.max_running_requests:
        raise InvalidRequest("n", f"{request.n} is outside [1, {config.max_running_requests}], the size of the batch")
    if request.stopping.max_new_tokens < 1:
        raise InvalidRequest("stopping.max_new_tokens", f"must be at least 1, not {request.stopping.max_new_tokens}")


def _check_choices(request: Request, vocab_size: int) -> None:
    if request.n != 1:
        raise InvalidRequest("n", f"{request.n} answers were asked for, but choices are scored, not generated")
    if request.prompt_logprobs is not None:
        raise InvalidRequest("prompt_logprobs", "cannot be asked for together with choices")
    for index, choice in enumerate(request.choices):
        if not choice:
            raise InvalidRequest(f"choices[{index}]", "is empty; at least one token is needed")
        _check_tokens(f"choices[{index}]", choice, vocab_size)


def _check_length(prompt: int, longest: int, *, kv_tokens: int, max_sequence_length: int) -> None:
    if prompt + longest > max_sequence_length:
        raise PromptTooLong(
            "prompt", f"{prompt} tokens and an answer of {longest} are more than the model's {max_sequence_length}"
        )
    if prompt + longest - 1 > kv_tokens:
        raise PromptTooLong(
            "prompt", f"{prompt} tokens and an answer of {longest} are more than the cache's {kv_tokens}"
        )


def _check_tokens(field: str, token_ids: Iterable[int], vocab_size: int) -> None:
    for token in token_ids:
        if not 0 <= token < vocab_size:
            raise InvalidRequest(field, f"token id {token} is outside the vocabulary, [0, {vocab_size})")
