"""What the registry keeps: views, leases, garbage, and its blobs' health. Twin of `keeping.py`."""

from collections.abc import Callable, Sequence

from hotshoe.clients import registry_messages
from hotshoe.clients.channels import QUICK_SECONDS, TRANSFER_SECONDS
from hotshoe.clients.connection import AsyncConnection
from hotshoe.clients.streams import AsyncResponseStream
from hotshoe.protos.v1 import registry_pb2 as registry


class AsyncKeepingMethods(AsyncConnection):
    """Part of AsyncClient."""

    async def view(self, reference: str, *, timeout: float | None = TRANSFER_SECONDS) -> registry.CreateViewResponse:
        """Makes a directory of an adapter's files on the server's machine, as PEFT and vLLM read it.

        It is there, and the adapter is not collected, until `unview`.
        """
        request = registry.CreateViewRequest(reference=reference)
        return await self._call(self._registry.CreateView, request, timeout)

    async def unview(self, reference: str, *, timeout: float | None = QUICK_SECONDS) -> bool:
        """Removes an adapter's view; whether there was one."""
        request = registry.DeleteViewRequest(reference=reference)
        response = await self._call(self._registry.DeleteView, request, timeout)
        return response.deleted

    async def lease(
        self,
        reference: str,
        holder: str,
        *,
        ttl_seconds: float | None = None,
        timeout: float | None = QUICK_SECONDS,
    ) -> registry.Lease:
        """Keeps what a reference resolves to now from being collected for a time, a day if it is not given.

        Leasing it again is for so long from then on. It outlives restarts of client and server.
        """
        request = registry.LeaseAdapterRequest(reference=reference, holder=holder, ttl_seconds=ttl_seconds)
        response = await self._call(self._registry.LeaseAdapter, request, timeout)
        return response.lease

    async def release_lease(self, holder: str, reference: str = "", *, timeout: float | None = QUICK_SECONDS) -> int:
        """Ends a holder's lease of an adapter, or all that it has; returns how many there were."""
        request = registry.ReleaseLeaseRequest(holder=holder, reference=reference)
        response = await self._call(self._registry.ReleaseLease, request, timeout)
        return response.released

    async def leases(self, holder: str = "", *, timeout: float | None = QUICK_SECONDS) -> Sequence[registry.Lease]:
        """The leases that hold now, of a holder or of all, the first to expire first; those of servers, too."""
        request = registry.ListLeasesRequest(holder=holder)
        response = await self._call(self._registry.ListLeases, request, timeout)
        return response.leases

    async def collect_garbage(
        self,
        *,
        dry_run: bool = False,
        grace_seconds: float | None = None,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.CollectGarbageResponse:
        """Removes what no tag, lease or view reaches and nobody touched within the grace, a day if it is not given."""
        request = registry.CollectGarbageRequest(dry_run=dry_run, grace_seconds=grace_seconds)
        return await self._call(self._registry.CollectGarbage, request, timeout)

    async def check_store(
        self,
        *,
        heal: bool = False,
        progress: Callable[[registry.CheckStoreResponse], None] | None = None,
        timeout: float | None = None,
    ) -> registry.StoreReport:
        """Has the server read and hash every blob. With `heal`, what is damaged or lost is fetched from its remotes."""
        request = registry.CheckStoreRequest(heal=heal)
        last: registry.CheckStoreResponse | None = None
        async with AsyncResponseStream(*self._opening(self._registry.CheckStore, request, timeout)) as stream:
            async for last in stream:
                if progress is not None and not last.HasField("report"):
                    progress(last)
        return registry_messages.store_report(last)
