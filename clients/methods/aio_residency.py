"""Adapters in the server's memory, and how it fares. Twin of `residency.py`."""

from collections.abc import Callable, Sequence

from hotshoe.clients import messages
from hotshoe.clients.channels import QUICK_SECONDS, TRANSFER_SECONDS
from hotshoe.clients.connection import AsyncConnection
from hotshoe.clients.streams import AsyncResponseStream
from hotshoe.protos.v1 import residency_pb2 as residency


class AsyncResidencyMethods(AsyncConnection):
    """Part of AsyncClient."""

    async def load(
        self,
        reference: str,
        *,
        tier: messages.TierName = "device",
        pin: bool = False,
        task: int | None = None,
        progress: Callable[[residency.LoadAdapterResponse], None] | None = None,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> residency.ResidentAdapter:
        """Loads an adapter, or a task of one that has tasks, ahead of its first request; waits until it is ready."""
        request = messages.load_request(reference, tier=tier, pin=pin, task=task)
        last: residency.LoadAdapterResponse | None = None
        async with AsyncResponseStream(*self._opening(self._residency.LoadAdapter, request, timeout)) as stream:
            async for last in stream:
                if progress is not None:
                    progress(last)
        return messages.loaded_adapter(last)

    async def unload(
        self, reference: str, *, task: int | None = None, timeout: float | None = QUICK_SECONDS
    ) -> residency.UnloadAdapterResponse:
        """Unpins an adapter and drops it once no request uses it: one of its tasks, or all that there is of it."""
        request = residency.UnloadAdapterRequest(reference=reference, task=task)
        return await self._call(self._residency.UnloadAdapter, request, timeout)

    async def list_resident(self, *, timeout: float | None = QUICK_SECONDS) -> Sequence[residency.ResidentAdapter]:
        """The adapters that the server holds in memory."""
        request = residency.ListResidentAdaptersRequest()
        response = await self._call(self._residency.ListResidentAdapters, request, timeout)
        return response.adapters

    def watch_status(
        self, *, interval_seconds: float = 1.0, timeout: float | None = None
    ) -> AsyncResponseStream[residency.WatchStatusResponse]:
        """The server's state once per interval, until the stream is left."""
        request = residency.WatchStatusRequest(interval_ms=round(interval_seconds * 1000))
        return AsyncResponseStream(*self._opening(self._residency.WatchStatus, request, timeout))

    async def health(self, service: str = "", *, timeout: float | None = QUICK_SECONDS) -> str:
        """What grpc.health.v1 says: "SERVING", "NOT_SERVING" or "UNKNOWN". Raises NotFound for an unknown service."""
        from grpc_health.v1 import health_pb2, health_pb2_grpc  # only those who ask pay for it

        stub = health_pb2_grpc.HealthStub(self._channel)
        response = await self._call(stub.Check, health_pb2.HealthCheckRequest(service=service), timeout)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))
