"""The asyncio twins of `exports.export` and `imports.import_adapter`: those, on a thread, with a loop's client."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

from hotshoe.clients.exchange import exports, imports
from hotshoe.clients.progress import Progress, TransferProgress, ignore_progress
from hotshoe.protos.v1 import registry_pb2 as registry

if TYPE_CHECKING:
    from hotshoe.clients.aio import AsyncClient
    from hotshoe.clients.client import Client

T = TypeVar("T")


async def export(
    client: "AsyncClient",
    reference: str,
    destination: str | os.PathLike[str],
    *,
    form: str,
    progress: Progress = ignore_progress,
) -> registry.Adapter:
    """As `exports.export`. `progress` is called on any thread; what is cancelled leaves nothing behind."""
    return await _on_thread(
        client, progress, partial(exports.export, reference=reference, destination=destination, form=form)
    )


async def import_adapter(
    client: "AsyncClient",
    source: str | os.PathLike[str],
    name: str,
    *,
    tag: str = "latest",
    reference: str | None = None,
    other_base: bool = False,
    progress: Progress = ignore_progress,
) -> imports.Imported:
    """As `imports.import_adapter`. `progress` is called on any thread."""
    work = partial(
        imports.import_adapter, source=source, name=name, tag=tag, reference=reference, other_base=other_base
    )
    return await _on_thread(client, progress, work)


async def _on_thread(client: "AsyncClient", progress: Progress, work: Callable[..., T]) -> T:
    loop = asyncio.get_running_loop()
    bridge = _Bridge(client, loop, progress)
    # Not one of the loop's own threads: the client's methods need those, and would wait for each other.
    thread = ThreadPoolExecutor(1, thread_name_prefix="exchange")
    running = loop.run_in_executor(thread, partial(work, cast("Client", bridge), progress=bridge.progress))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        bridge.end()
        await asyncio.wait([running])  # until its temporary files are gone
        running.exception()  # somebody looked
        raise
    finally:
        thread.shutdown(wait=False)


class _Bridge:
    """An AsyncClient's methods as the blocking client has them, for one thread that is not its event loop's."""

    def __init__(self, client: "AsyncClient", loop: asyncio.AbstractEventLoop, progress: Progress) -> None:
        self._client = client
        self._loop = loop
        self._progress = progress
        self._mutex = threading.Lock()
        self._pending: Future[Any] | None = None
        self._ended = False

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            with self._mutex:
                self._check()
                self._pending = asyncio.run_coroutine_threadsafe(method(*arguments, **options), self._loop)
            return self._pending.result()

        return call

    def progress(self, step: TransferProgress) -> None:
        self._check()
        self._progress(step)

    def end(self) -> None:
        """Ends the call that is under way, and lets no other begin."""
        with self._mutex:
            self._ended = True
            if self._pending is not None:
                self._pending.cancel()

    def _check(self) -> None:
        if self._ended:
            raise CancelledError
