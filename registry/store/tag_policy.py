"""Which tags may move: a version, once published, means the same bytes for ever; every other tag is a movable alias."""

import re
from dataclasses import dataclass

from hotshoe.registry.errors import TagImmutable

# v1, v2.3, v1.2.3, 1.2.3; each perhaps with "-rc.1" behind it.
_VERSION = re.compile(r"(?:v[0-9]+(?:\.[0-9]+){0,2}|[0-9]+\.[0-9]+\.[0-9]+)(?:-[A-Za-z0-9.-]+)?")


@dataclass(frozen=True, slots=True)
class TagPolicy:
    """What a store lets tags do; with `mutable`, anything."""

    mutable: bool = False

    def check(self, name: str, tag: str, old: str | None, new: str) -> None:
        """Accepts that a tag goes from `old` to `new`. None is nowhere, and pointing where it pointed is no move.

        Raises:
            TagImmutable: it is a version, and is taken.
        """
        if not self.mutable and old not in (None, new) and _VERSION.fullmatch(tag):
            raise TagImmutable(f"{name}:{tag}", old or "")


FIXED_VERSIONS = TagPolicy()
