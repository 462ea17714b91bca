"""Digests: "sha256:" and 64 lower-case hex digits, the only name that content has."""

import hashlib
import re
from typing import BinaryIO

from hotshoe.registry.errors import InvalidReference

_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether `text` is exactly "sha256:" and 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def check_digest(text: str) -> str:
    """Returns `text`.

    Raises:
        InvalidReference: it is not a digest.
    """
    if not is_digest(text):
        problem = f"digest {text[:80]!r}: expected sha256: and 64 lower-case hex digits"
        raise InvalidReference(problem, field="digest")
    return text


def digest_hex(digest: str) -> str:
    """The 64 hex digits of a digest: the only text from outside that may become part of a path.

    Raises:
        InvalidReference: it is not a digest.
    """
    return check_digest(digest).removeprefix("sha256:")


def digest_of(data: bytes) -> str:
    """The digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def digest_of_stream(stream: BinaryIO) -> str:
    """The digest of what is left of `stream`; the read position is left anywhere."""
    sha256 = hashlib.sha256()
    while chunk := stream.read(_CHUNK_BYTES):
        sha256.update(chunk)
    return f"sha256:{sha256.hexdigest()}"
