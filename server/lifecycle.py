"""One server from its first port to its last: bind, load the base, serve, drain, stop."""

import asyncio
import contextlib
import gc
import json
import logging
import signal
import sys
from functools import partial
from typing import Any

from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.registry import Registry
from hotshoe.server.assembly import Assembly, build_admission
from hotshoe.server.config import Address, ServerConfig
from hotshoe.server.core import Core
from hotshoe.server.engine.engine import Engine
from hotshoe.server.errors import EngineDead
from hotshoe.server.http import HttpServer
from hotshoe.server.logs import log_event
from hotshoe.server.metrics import Metrics
from hotshoe.server.model.loader import LoadedBase
from hotshoe.server.ports import bind_grpc, check_free, start_http, start_openai, start_registry_http
from hotshoe.server.services.dispatcher import Dispatcher
from hotshoe.server.services.health import Health
from hotshoe.server.services.interceptors import RpcInterceptor
from hotshoe.server.startup import StartupError

_FLUSH_SECONDS = 0.5  # for what is written but not sent, and for health watches
_WATCHDOG_SECONDS = 0.25
_LOST_SECONDS = 60.0  # an engine that stands still for so long will not go on
_ENGINE_STOP_SECONDS = 3.0
_SWITCH_SECONDS = 0.0005
_STOP_SECONDS = 5.0  # for everything, once nothing runs any more


class Server:
    """A server in this process. `start` once, then `drain`, then `stop`; all on one event loop."""

    def __init__(self, config: ServerConfig, *, health: Health | None = None) -> None:
        self.config = config
        self.health = health or Health()
        self.metrics = Metrics(legacy_names=config.legacy_metric_names)
        self.http: HttpServer | None = None
        self.registry_http: Address | None = None
        self.openai: Address | None = None
        self._cleanup = contextlib.AsyncExitStack()  # what to end, the latest first
        self._core = Core(config, self.metrics, self._cleanup)
        self._interceptor = RpcInterceptor(self.metrics)
        self._draining = asyncio.Event()

    @property
    def base(self) -> LoadedBase:
        return self._core.base

    @property
    def registry(self) -> Registry:
        return self._core.registry

    @property
    def engine(self) -> Engine:
        return self._core.engine

    @property
    def dispatcher(self) -> Dispatcher:
        return self._core.dispatcher

    async def start(self) -> dict[str, Any]:
        """Binds, loads and serves. Returns what the ready line says.

        Raises:
            StartupError: a port is taken, or the registry or the base cannot be opened. Nothing is left behind.
        """
        try:
            if (admission := build_admission(self.config, self._core)) is not None:
                self._interceptor.admit_by(admission)
            server, address = bind_grpc(self.config, self._interceptor)
            if self.config.openai:
                check_free("--openai", self.config.openai)
            self.http = start_http(self.config, self.health, self.metrics, self._cleanup)
            await asyncio.to_thread(self._core.open)
            self.registry_http = start_registry_http(self.config, self.registry, self._cleanup)
            self._core.build_engine()
            services = Assembly(self._core, self.health, self._draining, self._cleanup)
            services.add_to(server)
            self._cleanup.push_async_callback(server.stop, _FLUSH_SECONDS)
            self.engine.start()
            self._cleanup.push_async_callback(asyncio.to_thread, self.engine.stop, _ENGINE_STOP_SECONDS)
            await server.start()
            application = partial(services.openai_application, self._interceptor)
            self.openai = await start_openai(self.config, application, self._cleanup)
            self.health.ready(self.engine)
            self._watch()
        except BaseException:
            await self.stop()
            raise
        return self._ready_line(address)

    async def drain(self, grace_seconds: float) -> bool:
        """Refuses new work and lets what was taken finish. Returns whether it did, within `grace_seconds`."""
        self.health.begin_drain()
        self._interceptor.begin_drain()
        self.engine.begin_drain()
        self._draining.set()
        try:
            await asyncio.wait_for(self._interceptor.wait_idle(), grace_seconds)
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Ends everything: what still runs fails with Draining."""
        await self._cleanup.aclose()

    def _ready_line(self, address: Address) -> dict[str, Any]:
        return {
            "grpc": str(address),
            "http": str(self.http.address) if self.http else "",
            **({"registry_http": str(self.registry_http)} if self.registry_http else {}),
            **({"openai": str(self.openai)} if self.openai else {}),
            "base_model": self.base.name,
            "base_digest": self.base.digest,
            "device": self.base.device,
            "backend": self.base.backend,
        }

    def _watch(self) -> None:
        watchdog = asyncio.create_task(self._watchdog())
        self._cleanup.callback(watchdog.cancel)
        if self.registry.read_only:
            path, reason = str(self.config.registry), self.registry.read_only
            log_event(logging.WARNING, "registry_read_only", registry=path, reason=reason)
        elif self.config.collect_every_seconds:
            collector = asyncio.create_task(self._collect_garbage(self.config.collect_every_seconds))
            self._cleanup.callback(collector.cancel)

    async def _collect_garbage(self, every_seconds: float) -> None:
        while True:
            await asyncio.sleep(every_seconds)
            try:
                report = await asyncio.to_thread(self.registry.collect_garbage)
            except StoreUnavailable as error:
                log_event(logging.ERROR, "collect_garbage_failed", reason=str(error))
                continue
            log_event(
                logging.INFO,
                "collect_garbage",
                adapters=len(report.adapters),
                blobs=report.blobs,
                bytes=report.blob_bytes,
            )

    async def _watchdog(self) -> None:
        """Logs each change of health, and ends the requests of an engine that will give nothing more."""
        known = ""
        while True:
            state = self.health.state
            if state != known:
                log_event(logging.INFO if state in ("serving", "draining") else logging.ERROR, "health", state=state)
                known = state
            if not self.engine.alive or self.engine.heartbeat_age_seconds() > _LOST_SECONDS:
                self.dispatcher.fail_all(EngineDead("the engine has ended or stands still"))
            await asyncio.sleep(_WATCHDOG_SECONDS)


async def serve(config: ServerConfig) -> int:
    """Serves until SIGTERM, SIGINT or SIGHUP. Returns the exit code: 0, or 1 if it could not start."""
    _share_the_interpreter()
    server = Server(config)
    try:
        ready = await server.start()
    except StartupError as error:
        log_event(logging.ERROR, "cannot_start", reason=str(error))
        return 1
    _settle()
    signals = _Signals()
    with contextlib.suppress(OSError):  # whoever started it may not care, and those who ask it do
        print(json.dumps({"event": "ready", **ready}), flush=True)
    log_event(logging.INFO, "ready", **ready)
    await signals.first.wait()
    log_event(logging.INFO, "draining", grace_seconds=config.grace_seconds)
    ending = asyncio.create_task(_end(server, config.grace_seconds))
    second = asyncio.create_task(signals.second.wait())
    await asyncio.wait({ending, second}, return_when=asyncio.FIRST_COMPLETED)
    log_event(logging.INFO, "stopped", at_once=not ending.done())
    return 0


def _share_the_interpreter() -> None:
    """Has a thread that runs Python give way to the engine's in a fraction of a step, not in 5 ms."""
    sys.setswitchinterval(_SWITCH_SECONDS)


def _settle() -> None:
    """What was made at the start stays: the garbage collector need not look at it again in the middle of a step."""
    gc.collect()
    gc.freeze()


async def _end(server: Server, grace_seconds: float) -> None:
    if not await server.drain(grace_seconds):
        log_event(logging.WARNING, "grace_exceeded", grace_seconds=grace_seconds)
    try:
        await asyncio.wait_for(server.stop(), _STOP_SECONDS)
    except TimeoutError:
        log_event(logging.WARNING, "stop_timed_out")


class _Signals:
    """The first and the second request to end."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup, and a script for its background jobs, have it ignored; so it stays.
            if signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._note)

    def _note(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
