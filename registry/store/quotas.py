"""Quotas: how much may be published, in all and under each part of the names."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from hotshoe.registry.errors import QuotaExceeded

WHOLE_STORE = "*"


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of what is published under names with one beginning; None is none."""

    max_bytes: int | None = None
    max_adapters: int | None = None

    def __post_init__(self) -> None:
        for value in (self.max_bytes, self.max_adapters):
            if value is not None and value < 0:
                raise ValueError(f"{value}: a quota is 0 or more")


class Quotas:
    """The quotas of one store.

    An adapter counts once for each of its names, its files' bytes once for each quota; what has no tag counts until it
    is collected.

    Args:
        quotas: by the beginning of a name ("team/"), or "*" for the whole store; all that match hold.
        size_of: the size in bytes of an adapter's files; asked once for each.
    """

    def __init__(self, quotas: Mapping[str, Quota], size_of: Callable[[str], int]) -> None:
        self._quotas = dict(quotas)
        self._size_of = cache(size_of)

    def check(
        self, name: str, digest: str, *, size_bytes: int, stored: Callable[[str], Sequence[tuple[str, str]]]
    ) -> None:
        """Accepts an adapter that is to be published as `name`.

        Args:
            stored: the (name, digest) of every adapter whose name begins so; the new one may be among them.

        Raises:
            QuotaExceeded: it would be more than a quota allows; the message says which, and how much there is.
        """
        for prefix, quota in self._quotas.items():
            beginning = "" if prefix == WHOLE_STORE else prefix
            if name.startswith(beginning):
                adapters = {*stored(beginning)}
                if (name, digest) not in adapters:
                    self._check(prefix, quota, adapters, (name, digest), size_bytes)

    def _check(
        self, prefix: str, quota: Quota, adapters: set[tuple[str, str]], new: tuple[str, str], size_bytes: int
    ) -> None:
        where = "the store" if prefix == WHOLE_STORE else f"names that begin with {prefix}"
        advice = f"remove tags, then collect garbage, or serve with more for {prefix} in --quotas"
        if quota.max_adapters is not None and len(adapters) >= quota.max_adapters:
            raise QuotaExceeded(f"{where}: {len(adapters)} of at most {quota.max_adapters} adapters; {advice}")
        if quota.max_bytes is None:
            return
        digests = {digest for _, digest in adapters}
        used = sum(map(self._size_of, digests))
        added = 0 if new[1] in digests else size_bytes
        if used + added > quota.max_bytes:
            raise QuotaExceeded(
                f"{where}: {used} of at most {quota.max_bytes} bytes are used, and the adapter has {added}; {advice}"
            )
