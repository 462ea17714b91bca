"""Who waits for which adapters to be on the device together, and who came first. Not thread-safe."""

import itertools
import math
import time
from collections.abc import Collection
from dataclasses import dataclass

LEASE_SECONDS = 2.0  # how long an adapter is kept for a claim that is not renewed
FORGET_SECONDS = 10.0  # how long a claim that is not renewed keeps its place in the line


@dataclass(slots=True, eq=False)
class Claim:
    """What the requests for one stack wait for."""

    keys: frozenset[str]
    order: int
    lease_until: float  # time.monotonic() seconds


class Claims:
    """The line of those who wait, one place for each stack.

    Places are never shared: of two stacks with an adapter in common one is first, and may have all of its own. An
    adapter's place is that of the first claim on it; it is kept from those behind while that claim's lease holds.
    """

    def __init__(self) -> None:
        self._claims: dict[frozenset[str], Claim] = {}  # in their order
        self._by_key: dict[str, dict[frozenset[str], Claim]] = {}  # the same for each adapter
        self._looked = 0.0  # when old ones were looked for last
        self._orders = itertools.count()

    def renew(self, keys: Collection[str], *, lease_until: float | None = None) -> bool:
        """Keeps a stack's place and what is on the device of it; True if it is new, and its place the last."""
        self._forget_old()
        until = time.monotonic() + LEASE_SECONDS if lease_until is None else lease_until
        stack = frozenset(keys)
        claim = self._claims.get(stack)
        if claim is not None:
            claim.lease_until = max(claim.lease_until, until)
            return False
        claim = self._claims[stack] = Claim(stack, next(self._orders), until)
        for key in stack:
            self._by_key.setdefault(key, {})[stack] = claim
        return True

    def extend(self, key: str) -> None:
        """An adapter came: whoever waits for it gets time to take it."""
        until = time.monotonic() + LEASE_SECONDS
        for claim in self._by_key.get(key, {}).values():
            claim.lease_until = max(claim.lease_until, until)

    def end_load(self, key: str, *, requested: bool) -> None:
        """Nobody waits for an adapter in `load` any more; if it is requested, it is kept for a moment."""
        claim = self._claims.get(frozenset((key,)))
        if claim is None:
            return
        if requested:
            claim.lease_until = min(claim.lease_until, time.monotonic() + LEASE_SECONDS)
        else:
            self.drop(claim.keys)

    def drop(self, keys: Collection[str]) -> None:
        """A stack was taken, or never can be."""
        stack = frozenset(keys)
        if self._claims.pop(stack, None) is None:
            return
        for key in stack:
            del self._by_key[key][stack]
            if not self._by_key[key]:
                del self._by_key[key]

    def order_of(self, key: str) -> float:
        """The place of the first claim on an adapter; infinite if there is none."""
        return next((claim.order for claim in self._by_key.get(key, {}).values()), math.inf)

    def kept_from(self, order: float, now: float) -> set[str]:
        """What whoever has this place may not evict: all that it, and those before it at `now`, claim."""
        kept: set[str] = set()
        for claim in self._claims.values():
            if claim.order == order or (claim.order < order and claim.lease_until > now):
                kept |= claim.keys
        return kept

    def leased(self, now: float) -> set[str]:
        """All that is kept for somebody at `now`."""
        return {key for claim in self._claims.values() if claim.lease_until > now for key in claim.keys}

    def _forget_old(self) -> None:
        """Now and then: hundreds of requests may wait, and each renews its claim whenever something changes."""
        now = time.monotonic()
        if now - self._looked < FORGET_SECONDS / 10:
            return
        self._looked = now
        for claim in [claim for claim in self._claims.values() if claim.lease_until < now - FORGET_SECONDS]:
            self.drop(claim.keys)
