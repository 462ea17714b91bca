"""StopCriteria as a message has them → the engine's; wrong fields are named as in the proto."""

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.engine.request import StopCriteria
from hotshoe.server.errors import InvalidRequest, PromptTooLong
from hotshoe.server.services.token_ids import checked_ids

DEFAULT_MAX_NEW_TOKENS = 256
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_BYTES = 256
MAX_STOP_TOKEN_IDS = 64


def check_stopping(message: generation_pb2.StopCriteria, *, vocab_size: int) -> None:
    """Raises InvalidRequest for what is wrong whatever the prompt is."""
    if len(message.stop) > MAX_STOP_STRINGS:
        raise InvalidRequest("stopping.stop", f"at most {MAX_STOP_STRINGS} stop strings, not {len(message.stop)}")
    for index, text in enumerate(message.stop):
        size = len(text.encode())
        if not 1 <= size <= MAX_STOP_STRING_BYTES:
            raise InvalidRequest(
                f"stopping.stop[{index}]", f"expected 1 to {MAX_STOP_STRING_BYTES} bytes of UTF-8, not {size}"
            )
    if len(message.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidRequest(
            "stopping.stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} ids, not {len(message.stop_token_ids)}"
        )
    checked_ids("stopping.stop_token_ids", message.stop_token_ids, vocab_size=vocab_size)


def stop_criteria(
    message: generation_pb2.StopCriteria, *, prompt_tokens: int, virtual_tokens: int, max_tokens: int
) -> StopCriteria:
    """The criteria of an answer to a prompt of so many tokens, behind so many virtual ones.

    Args:
        max_tokens: what all of them and the answer may have together.

    Raises:
        InvalidRequest, PromptTooLong: a field is wrong, or asks for more than there is room.
    """
    room = max_tokens - prompt_tokens - virtual_tokens
    if message.HasField("max_new_tokens"):
        max_new_tokens = message.max_new_tokens
        if not max_new_tokens:
            raise InvalidRequest("stopping.max_new_tokens", "must be at least 1")
    else:
        max_new_tokens = max(min(DEFAULT_MAX_NEW_TOKENS, room), 1, min(message.min_new_tokens, room))
    if max_new_tokens > room:
        raise PromptTooLong(
            "stopping.max_new_tokens",
            f"{prompt_tokens} prompt tokens, {virtual_tokens} of soft prompts and {max_new_tokens} new ones "
            f"exceed {max_tokens}",
        )
    return StopCriteria(
        max_new_tokens=max_new_tokens,
        min_new_tokens=message.min_new_tokens,
        stop=tuple(message.stop),
        stop_token_ids=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        time_limit_seconds=_time_limit(message),
    )


def _time_limit(message: generation_pb2.StopCriteria) -> float | None:
    """In seconds."""
    if not message.HasField("time_limit"):
        return None
    limit = message.time_limit
    if not 0 <= limit.nanos < 1_000_000_000:
        raise InvalidRequest("stopping.time_limit.nanos", f"expected 0 to 999999999, not {limit.nanos}")
    return limit.seconds + limit.nanos * 1e-9
