"""Page tokens of a listing: where a page ended, opaque to callers, and good only for the filters they came from."""

import base64
import hashlib
import json

from hotshoe.registry.errors import InvalidReference


def filters_digest(*filters: str) -> str:
    """What tells one set of filters from another."""
    return hashlib.sha256(json.dumps(filters).encode()).hexdigest()[:16]


def make_page_token(sequence: int, *, filters: str) -> str:
    """The token of the page that follows the adapter of that sequence."""
    return base64.urlsafe_b64encode(f"{sequence}.{filters}".encode()).decode()


def read_page_token(token: str, *, filters: str) -> int:
    """The sequence in a token.

    Raises:
        InvalidReference: it is not one, or from a listing with other filters.
    """
    try:
        sequence = int(base64.urlsafe_b64decode(token).partition(b".")[0])
    except ValueError:
        sequence = 0
    if not 0 < sequence < 1 << 63 or make_page_token(sequence, filters=filters) != token:
        problem = "page_token: expected one that an earlier call with the same filters returned"
        raise InvalidReference(problem, field="page_token")
    return sequence
