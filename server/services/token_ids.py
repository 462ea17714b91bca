"""Token ids as callers give them, held against a vocabulary."""

from collections.abc import Iterable

from hotshoe.server.errors import InvalidRequest


def checked_ids(field: str, ids: Iterable[int], *, vocab_size: int) -> tuple[int, ...]:
    """The ids. Raises InvalidRequest, which names the one that is not below `vocab_size`."""
    checked = tuple(ids)
    for index, token in enumerate(checked):
        check_id(f"{field}[{index}]", token, vocab_size=vocab_size)
    return checked


def check_id(field: str, token: int, *, vocab_size: int) -> None:
    """Raises InvalidRequest for an id that is not below `vocab_size`."""
    if token >= vocab_size:
        raise InvalidRequest(field, f"token id {token} is not below the vocabulary's {vocab_size}")
