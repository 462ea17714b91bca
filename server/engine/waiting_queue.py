"""The sequences that wait for a place in the batch, and in which order they are tried."""

import bisect
import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from operator import attrgetter

from hotshoe.server.engine.sequence import Sequence
from hotshoe.server.engine.tenant_shares import TenantShares

_order = attrgetter("order")


class WaitingQueue:
    """A line for each tenant, by arrival; a preempted sequence comes back to where its arrival puts it."""

    def __init__(self, shares: TenantShares) -> None:
        self._shares = shares
        self._lines: dict[str, list[Sequence]] = {}  # never empty ones
        self._last_tenant: str | None = None  # whose line was the last to end

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait, tenant by tenant."""
        return (sequence for line in self._lines.values() for sequence in line)

    def push(self, sequence: Sequence) -> None:
        """Adds a sequence to its tenant's line, by arrival."""
        tenant = sequence.request.tenant
        line = self._lines.get(tenant)
        if line is None:
            others = list(self._lines) or ([] if self._last_tenant is None else [self._last_tenant])
            self._shares.lift(tenant, others)
            line = self._lines[tenant] = []
        bisect.insort(line, sequence, key=_order)

    def remove(self, sequence: Sequence) -> None:
        """Takes out a sequence that is known to wait."""
        tenant = sequence.request.tenant
        line = self._lines[tenant]
        del line[bisect.bisect_left(line, sequence.order, key=_order)]
        if not line:
            del self._lines[tenant]
            self._last_tenant = tenant

    def turns(self, begun: Iterable[Sequence], *, with_waiting: bool) -> Iterator[Sequence]:
        """Everybody's turns at a step's rows: always one of the tenant that was served least.

        Each tenant's begun sequences come before those that wait, by arrival; or come alone. What is charged to a
        tenant between two turns counts for the next one; the queue may change meanwhile.
        """
        lines: dict[str, deque[Sequence]] = {}
        for sequence in sorted(begun, key=_order):
            lines.setdefault(sequence.request.tenant, deque()).append(sequence)
        num_begun = {tenant: len(line) for tenant, line in lines.items()}
        for tenant, waiting in self._lines.items() if with_waiting else ():
            lines.setdefault(tenant, deque()).extend(waiting)

        def turn(tenant: str) -> tuple[float, int, tuple[int, int], str]:
            # of two that were served alike, the one with less under way
            return self._shares.served(tenant), num_begun.get(tenant, 0), lines[tenant][0].order, tenant

        turns = [turn(tenant) for tenant in lines]
        heapq.heapify(turns)
        while turns:
            tenant = turns[0][-1]
            yield lines[tenant].popleft()
            if lines[tenant]:
                heapq.heapreplace(turns, turn(tenant))
            else:
                heapq.heappop(turns)
