"""What people call an adapter: name, name:tag or name@sha256:<hex>. None of it ever becomes a path."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from hotshoe.registry.digest import check_digest
from hotshoe.registry.errors import InvalidReference

DEFAULT_TAG = "latest"
MAX_NAME_LENGTH = 200
MAX_TAG_LENGTH = 128

# The intersection of what OCI Distribution allows in a repository and tag and what an image layout allows in ref.name.
_COMPONENT = r"[a-z0-9]+(?:[._-][a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_RESERVED_TAG = re.compile(r"sha256-[0-9a-f]{64}")  # where registries without a referrers API keep referrers


@contextmanager
def given_as(field: str) -> Iterator[None]:
    """Whatever InvalidReference is raised in this block is the fault of what the caller gave as `field`."""
    try:
        yield
    except InvalidReference as error:
        error.field = field
        raise


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A parsed reference: exactly one of `tag` and `digest` is set.

    `AdapterRef.parse(str(ref)) == ref` for every reference.
    """

    name: str
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> "AdapterRef":
        """Reads "name", which means "name:latest", "name:tag" or "name@sha256:<hex>".

        Raises:
            InvalidReference: it is none of these; the message says which part is wrong.
        """
        name, at, digest = text.partition("@")
        with given_as("reference"):
            if at:
                return cls(check_name(name), None, check_digest(digest))
            name, colon, tag = text.partition(":")
            return cls(check_name(name), check_tag(tag) if colon else DEFAULT_TAG, None)

    def __str__(self) -> str:
        return f"{self.name}@{self.digest}" if self.digest else f"{self.name}:{self.tag}"


def check_name(text: str) -> str:
    """Returns `text`.

    Raises:
        InvalidReference: it is not an adapter's name.
    """
    if len(text) > MAX_NAME_LENGTH or not _NAME.fullmatch(text):
        raise InvalidReference(
            f"name {text[:80]!r}: expected at most {MAX_NAME_LENGTH} characters, words of a-z and 0-9 "
            "joined by single '.', '_' or '-', with '/' between parts",
            field="name",
        )
    return text


def check_tag(text: str) -> str:
    """Returns `text`.

    Raises:
        InvalidReference: it is not a tag, or one of the form that is reserved for referrers.
    """
    if len(text) > MAX_TAG_LENGTH or not _TAG.fullmatch(text):
        raise InvalidReference(
            f"tag {text[:80]!r}: expected at most {MAX_TAG_LENGTH} characters, words of A-Z, a-z and 0-9 "
            "joined by single '.', '_' or '-'",
            field="tag",
        )
    if _RESERVED_TAG.fullmatch(text):
        raise InvalidReference(f"tag {text!r}: sha256-<hex> is reserved for referrers", field="tag")
    return text
