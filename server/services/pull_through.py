"""Adapters that are named by digest and are not here, fetched from the server's remotes, once for all who ask.

What is here never waits for a remote, and never fails with one.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Executor
from functools import partial

from hotshoe.registry.errors import AdapterNotFound, InvalidReference, RegistryError, RemoteError, StoreReadOnly
from hotshoe.registry.reference import AdapterRef
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.progress import TransferProgress
from hotshoe.server.errors import QueueFull
from hotshoe.server.logs import log_event
from hotshoe.server.services.recent_failures import RecentFailures
from hotshoe.server.services.transfers import CopyObserver, Transfers, sparse, total

MAX_FLIGHTS = 64

# Called on the event loop with bytes done and bytes in all.
OnBytes = Callable[[int, int], None]


class PullThrough:
    """Fetches what requests name. Event loop only.

    Args:
        executor: for fetching; while all its threads wait for slow remotes, further adapters wait too.
        observer: hears what became of each adapter that was named by digest; those who wait for one are counted once.
    """

    def __init__(self, registry: Registry, transfers: Transfers, executor: Executor, *, observer: CopyObserver) -> None:
        self._registry = registry
        self._transfers = transfers
        self._executor = executor
        self._observer = observer
        self._flights: dict[str, _Flight] = {}
        self._failures: RecentFailures[Exception] = RecentFailures()

    async def bring(self, references: Iterable[str]) -> None:
        """Returns once every "name@digest" among `references` is here; other references are left to their resolver.

        Raises:
            AdapterNotFound: no remote has one.
            RemoteError, InvalidAdapter, IncompatibleAdapter: it could not be fetched, or is refused.
            QueueFull: too many are being fetched.
            StoreReadOnly: the registry cannot take one in.
        """
        for reference in references:
            flight = await self._flight(reference)
            if flight is not None:
                await asyncio.shield(flight.task)

    async def bringing(self, reference: str) -> AsyncIterator[tuple[int, int]]:
        """As `bring`, of one; yields bytes done and bytes in all as they come."""
        flight = await self._flight(reference)
        if flight is None:
            return
        steps: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
        listener: OnBytes = lambda done, size: steps.put_nowait((done, size))  # noqa: E731
        flight.listeners.append(listener)
        flight.task.add_done_callback(lambda _: steps.put_nowait(None))
        try:
            while (step := await steps.get()) is not None:
                yield step
        finally:
            flight.listeners.remove(listener)
        await asyncio.shield(flight.task)

    async def _flight(self, reference: str) -> "_Flight | None":
        """The fetching of an adapter; None if it is here, or not of this kind."""
        if not self._transfers.remotes:
            return None
        try:
            ref = AdapterRef.parse(reference)
        except InvalidReference:  # its resolver says so
            return None
        if ref.digest is None:
            return None
        if await asyncio.get_running_loop().run_in_executor(None, self._is_here, reference):
            self._observer.pulled_through("hit")
            return None
        try:
            self._registry.check_writable()
        except StoreReadOnly as error:
            raise StoreReadOnly(f"no adapter {ref} here, and none is fetched: {error}") from None
        if (flight := self._flights.get(reference)) is not None:
            return flight
        if (failure := self._failures.find(reference)) is not None:
            raise failure.with_traceback(None)
        if len(self._flights) >= MAX_FLIGHTS:
            raise QueueFull(f"{MAX_FLIGHTS} adapters are being fetched already")
        return self._start(reference, ref)

    def _is_here(self, reference: str) -> bool:
        try:
            self._registry.resolve(reference)
        except AdapterNotFound:
            return False
        except RegistryError:  # its resolver says what is wrong
            return True
        return True

    def _start(self, reference: str, ref: AdapterRef) -> "_Flight":
        loop = asyncio.get_running_loop()
        flight = _Flight()
        flight.task = asyncio.ensure_future(
            loop.run_in_executor(self._executor, partial(self._fetch, ref, partial(_tell, loop, flight)))
        )
        self._flights[reference] = flight
        flight.task.add_done_callback(partial(self._landed, reference))
        return flight

    def _landed(self, reference: str, task: "asyncio.Future[None]") -> None:
        del self._flights[reference]
        if task.cancelled():
            return
        error = task.exception()
        self._observer.pulled_through("miss" if error is None else "failure")
        if isinstance(error, Exception):
            self._failures.note(reference, error)
            log_event(logging.WARNING, "pull_through_failed", reference=reference, reason=str(error))

    def _fetch(self, ref: AdapterRef, progress: Callable[[TransferProgress], None]) -> None:
        """Asks one remote after another; the first that has it gives it. On a thread of the executor."""
        failure: RemoteError | None = None
        for url in self._transfers.remotes:
            try:
                record = self._transfers.pull_here(url, ref, sparse(progress)).record
            except AdapterNotFound:
                continue
            except RemoteError as error:
                failure = failure or error
                continue
            log_event(logging.INFO, "pull_through", name=record.name, digest=record.digest, remote=str(url))
            return
        if failure is not None:
            raise failure
        remotes = ", ".join(map(str, self._transfers.remotes))
        raise AdapterNotFound(f"no adapter {ref}, neither here nor at {remotes}")


class _Flight:
    """One adapter under way, and who hears of its bytes."""

    def __init__(self) -> None:
        self.task: asyncio.Future[None]
        self.listeners: list[OnBytes] = []
        self.steps: dict[str, TransferProgress] = {}

    def heard(self, step: TransferProgress) -> None:
        self.steps[step.blob.digest] = step
        for listener in self.listeners:
            listener(*total(self.steps))


def _tell(loop: asyncio.AbstractEventLoop, flight: _Flight, step: TransferProgress) -> None:
    loop.call_soon_threadsafe(flight.heard, step)
