"""The RPCs about what of the registry is kept, and what goes: views, leases, collections, full checks."""

import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.store.fsck import FsckProgress, FsckReport
from hotshoe.registry.store.garbage import DEFAULT_GRACE_SECONDS, MIN_GRACE_SECONDS
from hotshoe.registry.store.leases import DEFAULT_LEASE_SECONDS, check_holder
from hotshoe.server.adapters.adapter_leases import HOLDER_PREFIX
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.logs import log_event
from hotshoe.server.services.adapter_messages import adapter_message
from hotshoe.server.services.registry_messages import check_message, garbage_message, lease_message, report_message
from hotshoe.server.services.registry_part import RegistryPart
from hotshoe.server.services.rpc import Context, call
from hotshoe.server.services.thread_steps import ThreadSteps

MIN_LEASE_SECONDS, MAX_LEASE_SECONDS = 1.0, 30 * 24 * 3600.0
_STEP_SECONDS = 0.2  # between two messages of a check


class KeepingService(RegistryPart):
    """A part of `RegistryService`."""

    async def CreateView(
        self, request: registry_pb2.CreateViewRequest, context: Context
    ) -> registry_pb2.CreateViewResponse:
        """A view is for those who serve it: what may not be served here has none."""
        record = await call(self._gate.resolve, request.reference)
        path = await call(self._registry.view, record.digest)
        log_event(logging.INFO, "create_view", name=record.name, digest=record.digest)
        return registry_pb2.CreateViewResponse(adapter=adapter_message(record), path=str(path))

    async def DeleteView(
        self, request: registry_pb2.DeleteViewRequest, context: Context
    ) -> registry_pb2.DeleteViewResponse:
        record = await call(self._registry.resolve, request.reference)
        deleted = await call(self._registry.unview, record.digest)
        log_event(logging.INFO, "delete_view", name=record.name, digest=record.digest, there=deleted)
        return registry_pb2.DeleteViewResponse(deleted=deleted)

    async def LeaseAdapter(
        self, request: registry_pb2.LeaseAdapterRequest, context: Context
    ) -> registry_pb2.LeaseAdapterResponse:
        _check_holder(request.holder)
        seconds = request.ttl_seconds if request.HasField("ttl_seconds") else DEFAULT_LEASE_SECONDS
        if not MIN_LEASE_SECONDS <= seconds <= MAX_LEASE_SECONDS:
            expected = f"{MIN_LEASE_SECONDS:.0f} to {MAX_LEASE_SECONDS:.0f}"
            raise InvalidRequest("ttl_seconds", f"expected {expected}, not {seconds}")
        record = await call(self._registry.resolve, request.reference)
        lease = await call(self._registry.lease_durably, record.digest, holder=request.holder, ttl_seconds=seconds)
        log_event(logging.INFO, "lease", name=record.name, digest=record.digest, holder=request.holder, seconds=seconds)
        return registry_pb2.LeaseAdapterResponse(lease=lease_message(lease))

    async def ReleaseLease(
        self, request: registry_pb2.ReleaseLeaseRequest, context: Context
    ) -> registry_pb2.ReleaseLeaseResponse:
        _check_holder(request.holder)
        digests = None
        if request.reference:
            digests = [(await call(self._registry.resolve, request.reference)).digest]
        released = await call(self._registry.release_leases, request.holder, digests)
        log_event(logging.INFO, "release_lease", holder=request.holder, reference=request.reference, released=released)
        return registry_pb2.ReleaseLeaseResponse(released=released)

    async def ListLeases(
        self, request: registry_pb2.ListLeasesRequest, context: Context
    ) -> registry_pb2.ListLeasesResponse:
        return registry_pb2.ListLeasesResponse(
            leases=map(lease_message, await call(self._registry.leases, request.holder))
        )

    async def CollectGarbage(
        self, request: registry_pb2.CollectGarbageRequest, context: Context
    ) -> registry_pb2.CollectGarbageResponse:
        grace = request.grace_seconds if request.HasField("grace_seconds") else DEFAULT_GRACE_SECONDS
        if not MIN_GRACE_SECONDS <= grace < math.inf:
            raise InvalidRequest("grace_seconds", f"expected at least {MIN_GRACE_SECONDS:.0f}, not {grace}")
        report = await call(self._registry.collect_garbage, grace_seconds=grace, dry_run=request.dry_run)
        if not request.dry_run:
            log_event(
                logging.INFO,
                "collect_garbage",
                adapters=len(report.adapters),
                blobs=report.blobs,
                bytes=report.blob_bytes,
            )
        return garbage_message(report)

    async def CheckStore(
        self, request: registry_pb2.CheckStoreRequest, context: Context
    ) -> AsyncIterator[registry_pb2.CheckStoreResponse]:
        """A caller that goes away ends the check at its next blob."""
        ended = threading.Event()

        def check(tell: Callable[[FsckProgress], None]) -> FsckReport:
            told = -math.inf

            def progress(step: FsckProgress) -> None:
                nonlocal told
                if ended.is_set():
                    raise _CheckEnded
                if time.monotonic() >= told + _STEP_SECONDS or step.blobs == step.total_blobs:
                    told = time.monotonic()
                    tell(step)

            return self._registry.fsck(heal=request.heal, progress=progress)

        steps: ThreadSteps[FsckProgress, FsckReport] = ThreadSteps(self._checking, check)
        try:
            async for step in steps:
                yield check_message(step)
            report = await steps.result
        finally:
            ended.set()
        log_event(
            logging.INFO if report.is_clean else logging.ERROR,
            "check_store",
            blobs=report.blobs,
            corrupt=len(report.corrupt),
            missing=len(report.missing),
            healed=len(report.healed),
        )
        yield registry_pb2.CheckStoreResponse(report=report_message(report))


class _CheckEnded(Exception):
    """Nobody waits for a check any more."""


def _check_holder(holder: str) -> None:
    if holder.startswith(HOLDER_PREFIX):
        raise InvalidRequest("holder", f"names that begin with {HOLDER_PREFIX} are those of servers")
    check_holder(holder)
