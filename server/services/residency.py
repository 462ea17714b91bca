"""ResidencyService: message ⇄ core type. Loads are waited for on threads of their own."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from hotshoe.protos.v1 import residency_pb2, residency_pb2_grpc
from hotshoe.registry.registry import Registry
from hotshoe.server.adapters.adapter_key import adapter_key
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.adapters.resident import LoadProgress, LoadStage, ResidentInfo, Tier
from hotshoe.server.adapters.signature_gate import SignatureGate
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.logs import log_event
from hotshoe.server.services.dispatcher import Dispatcher
from hotshoe.server.services.pull_through import PullThrough
from hotshoe.server.services.rpc import Context, call
from hotshoe.server.services.task_choice import chosen_task
from hotshoe.server.services.thread_steps import ThreadSteps

DEFAULT_INTERVAL_MS = 1000
MIN_INTERVAL_MS = 50
MAX_INTERVAL_MS = 60_000

TIERS = {
    residency_pb2.TIER_UNSPECIFIED: Tier.DEVICE,
    residency_pb2.TIER_HOST: Tier.HOST,
    residency_pb2.TIER_DEVICE: Tier.DEVICE,
}
_TIER_MESSAGES = {
    Tier.DISK: residency_pb2.TIER_DISK,
    Tier.HOST: residency_pb2.TIER_HOST,
    Tier.DEVICE: residency_pb2.TIER_DEVICE,
}
_STAGES = {
    LoadStage.RESOLVING: residency_pb2.LoadAdapterResponse.STAGE_RESOLVING,
    LoadStage.VERIFYING: residency_pb2.LoadAdapterResponse.STAGE_VERIFYING,
    LoadStage.LOADING: residency_pb2.LoadAdapterResponse.STAGE_LOADING,
    LoadStage.READY: residency_pb2.LoadAdapterResponse.STAGE_READY,
}


@dataclass(frozen=True, slots=True)
class ResidencyParts:
    """What the service stands on.

    Attributes:
        gate: the registry, for what is to be served.
        draining: set once the server shuts down; endless streams end then.
        executor: for callers that wait for a load.
        pull_through: fetches what is named by digest and is not here.
    """

    residency: AdapterResidency
    registry: Registry
    gate: SignatureGate
    dispatcher: Dispatcher
    max_adapters: int
    draining: asyncio.Event
    executor: Executor
    pull_through: PullThrough


class ResidencyService(residency_pb2_grpc.ResidencyServiceServicer):
    """Says and steers which adapters are in memory."""

    def __init__(self, parts: ResidencyParts) -> None:
        self._parts = parts

    async def LoadAdapter(
        self, request: residency_pb2.LoadAdapterRequest, context: Context
    ) -> AsyncIterator[residency_pb2.LoadAdapterResponse]:
        """A caller that goes away leaves the load going: somebody may want it still."""
        if request.tier not in TIERS:
            raise InvalidRequest("tier", "expected TIER_HOST, TIER_DEVICE or nothing, which means TIER_DEVICE")
        fetched = False
        async for completed, total in self._parts.pull_through.bringing(request.reference):
            fetched = True
            yield residency_pb2.LoadAdapterResponse(
                stage=residency_pb2.LoadAdapterResponse.STAGE_DOWNLOADING, completed_bytes=completed, total_bytes=total
            )
        record = await call(self._parts.gate.resolve, request.reference)
        key = adapter_key(record.digest, chosen_task("task", request, record.num_tasks))

        def load(tell: Callable[[LoadProgress], None]) -> None:
            self._parts.residency.load(key, tier=TIERS[request.tier], pin=request.pin, progress=tell)

        steps: ThreadSteps[LoadProgress, None] = ThreadSteps(self._parts.executor, load)
        async for step in steps:
            if not (fetched and step.stage is LoadStage.RESOLVING):  # which came before
                yield self._load_response(step)
        await steps.result
        log_event(logging.INFO, "load", name=record.name, digest=key, pin=request.pin)

    async def UnloadAdapter(
        self, request: residency_pb2.UnloadAdapterRequest, context: Context
    ) -> residency_pb2.UnloadAdapterResponse:
        record = await call(self._parts.registry.resolve, request.reference)
        named = record.num_tasks and not request.HasField("task")  # all of them
        task = None if named else chosen_task("task", request, record.num_tasks)
        key = adapter_key(record.digest, task)
        unloaded = await asyncio.get_running_loop().run_in_executor(None, self._parts.residency.unload, key)
        log_event(logging.INFO, "unload", name=record.name, digest=key, **unloaded._asdict())
        return residency_pb2.UnloadAdapterResponse(found=unloaded.found, in_use=unloaded.in_use)

    async def ListResidentAdapters(
        self, request: residency_pb2.ListResidentAdaptersRequest, context: Context
    ) -> residency_pb2.ListResidentAdaptersResponse:
        return residency_pb2.ListResidentAdaptersResponse(adapters=self._residents())

    async def WatchStatus(
        self, request: residency_pb2.WatchStatusRequest, context: Context
    ) -> AsyncIterator[residency_pb2.WatchStatusResponse]:
        interval_ms = request.interval_ms or DEFAULT_INTERVAL_MS
        if not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
            raise InvalidRequest("interval_ms", f"expected {MIN_INTERVAL_MS} to {MAX_INTERVAL_MS}, not {interval_ms}")
        tokens, since = self._parts.dispatcher.generated_tokens, time.monotonic()
        rate = 0.0
        while True:
            yield self._status(rate)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._parts.draining.wait(), interval_ms / 1000)
                return
            before, then = tokens, since
            tokens, since = self._parts.dispatcher.generated_tokens, time.monotonic()
            rate = (tokens - before) / (since - then)

    def _status(self, tokens_per_second: float) -> residency_pb2.WatchStatusResponse:
        stats = self._parts.dispatcher.stats
        return residency_pb2.WatchStatusResponse(
            running_requests=stats.running if stats else 0,
            waiting_requests=stats.waiting if stats else 0,
            kv_cache_usage=stats.kv_usage if stats else 0.0,
            generation_tokens_per_second=tokens_per_second,
            max_resident_adapters=self._parts.max_adapters,
            adapters=self._residents(),
        )

    def _residents(self) -> list[residency_pb2.ResidentAdapter]:
        waiting: Counter[str] = Counter()
        for (_, key), number in self._parts.dispatcher.waiting_adapters().items():
            waiting[key] += number
        return [_resident(info, waiting[info.key]) for info in self._parts.residency.residents()]

    def _load_response(self, step: LoadProgress) -> residency_pb2.LoadAdapterResponse:
        return residency_pb2.LoadAdapterResponse(
            stage=_STAGES[step.stage],
            completed_bytes=step.completed_bytes,
            total_bytes=step.total_bytes,
            adapter=_resident(step.adapter, 0) if step.adapter else None,
        )


def _resident(info: ResidentInfo, waiting: int) -> residency_pb2.ResidentAdapter:
    message = residency_pb2.ResidentAdapter(
        name=info.name,
        digest=info.digest,
        kind=info.kind,
        tier=_TIER_MESSAGES[info.tier],
        pinned=info.pinned,
        running_requests=info.running,
        waiting_requests=waiting,
        size_bytes=info.size_bytes,
        task=info.task,
    )
    message.last_use_time.FromNanoseconds(int(info.last_use * 1e9))
    return message
