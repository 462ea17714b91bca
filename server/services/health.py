"""grpc.health.v1: SERVING only while the base is ready and the engine moves."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hotshoe.server.services.rpc import Context

HEARTBEAT_LIMIT_SECONDS = 3.0
_WATCH_SECONDS = 0.25
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Heart(Protocol):
    """The engine, as far as its health goes."""

    @property
    def alive(self) -> bool: ...
    def heartbeat_age_seconds(self) -> float: ...


class Health:
    """Whether the server can answer, asked anew each time. Any thread."""

    def __init__(self, *, heartbeat_limit_seconds: float = HEARTBEAT_LIMIT_SECONDS) -> None:
        self._limit = heartbeat_limit_seconds
        self._engine: Heart | None = None
        self._draining = False
        self._started = time.monotonic()

    def ready(self, engine: Heart) -> None:
        """The base is loaded and `engine` runs."""
        self._engine = engine

    def begin_drain(self) -> None:
        self._draining = True

    @property
    def state(self) -> str:
        """loading, serving, draining, dead or stuck."""
        if self._draining:
            return "draining"
        if self._engine is None:
            return "loading"
        if not self._engine.alive:
            return "dead"
        return "stuck" if self._engine.heartbeat_age_seconds() > self._limit else "serving"

    @property
    def serving(self) -> bool:
        return self.state == "serving"

    def report(self) -> tuple[bool, dict[str, Any]]:
        """For the HTTP port: whether it serves, and a JSON object that says more."""
        state = self.state
        uptime = time.monotonic() - self._started
        return state == "serving", {"status": state, "uptime_seconds": round(uptime, 3)}


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """The gRPC side of it: "" and each service share one status."""

    def __init__(self, health: Health, services: Sequence[str]) -> None:
        self._health = health
        self._services = frozenset(("", *services))

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=self._status())

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        if request.service not in self._services:
            yield health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            await asyncio.Event().wait()  # the protocol keeps the call open; the set of services never changes
        told = None
        while True:
            status = self._status()
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            await asyncio.sleep(_WATCH_SECONDS)

    def _status(self) -> Any:
        return _SERVING if self._health.serving else _NOT_SERVING
