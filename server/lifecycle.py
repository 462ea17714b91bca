"""One server from its first port to its last: bind, load the base, serve, drain, stop."""

import asyncio
import contextlib
import errno
import gc
import json
import logging
import math
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hotshoe.protos.v1 import (
    chunks,
    generation_pb2,
    generation_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    residency_pb2,
    residency_pb2_grpc,
)
from hotshoe.registry.distribution import Distribution
from hotshoe.registry.errors import RegistryError, StoreUnavailable
from hotshoe.registry.formats.base import BaseWeights
from hotshoe.registry.formats.kind import ADAPTER_KINDS
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.http_server import registry_http_server
from hotshoe.registry.http_threads import tls_context
from hotshoe.registry.http_users import HttpUsers, InvalidUsers
from hotshoe.registry.registry import Registry
from hotshoe.registry.signing.policy import PolicyFile
from hotshoe.registry.validation import AdapterLimits
from hotshoe.registry.verification import Verifier
from hotshoe.server.adapters.adapter_reader import AdapterReader
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.lowered_cache import LoweredCache
from hotshoe.server.adapters.one_core import let_others_first
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.adapters.signature_gate import SignatureGate
from hotshoe.server.config import Address, ServerConfig
from hotshoe.server.engine.engine import Engine
from hotshoe.server.engine.request import AdapterUse
from hotshoe.server.errors import EngineDead, UnsupportedModel
from hotshoe.server.http import HttpServer
from hotshoe.server.logs import log_event
from hotshoe.server.metrics import Metrics, Sources
from hotshoe.server.model.loader import LoadedBase, load_base
from hotshoe.server.model.spectra import Spectra
from hotshoe.server.services.admission import Admission
from hotshoe.server.services.dispatcher import Dispatcher
from hotshoe.server.services.doctor import Doctor
from hotshoe.server.services.generation import GenerationParts, GenerationService
from hotshoe.server.services.healing import RemoteBlobs
from hotshoe.server.services.health import Health, HealthServicer
from hotshoe.server.services.interceptors import RpcInterceptor
from hotshoe.server.services.pull_through import PullThrough
from hotshoe.server.services.registry import RegistryService
from hotshoe.server.services.requests import RequestMapper
from hotshoe.server.services.residency import ResidencyParts, ResidencyService
from hotshoe.server.services.tokens import InvalidKeys, TokenVerifier
from hotshoe.server.services.transfers import Transfers

_RESERVE_BYTES = 8 << 20  # of the registry's disk
_MAPPING_THREADS = 2
_LOADING_THREADS = 4  # callers of LoadAdapter that wait at the same time
_TRANSFER_THREADS = 4  # callers of PushAdapter and PullAdapter that are served at the same time
_PULLING_THREADS = 4  # adapters that are fetched for requests at the same time
_CHECKING_THREADS = 1  # full checks of the registry: one at a time
_FLUSH_SECONDS = 0.5  # for what is written but not sent, and for health watches
_WATCHDOG_SECONDS = 0.25
_LOST_SECONDS = 60.0  # an engine that stands still for so long will not go on
_ENGINE_STOP_SECONDS = 3.0
_SWITCH_SECONDS = 0.0005
_STOP_SECONDS = 5.0  # for everything, once nothing runs any more

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (generation_pb2, "GenerationService"),
        (registry_pb2, "RegistryService"),
        (residency_pb2, "ResidencyService"),
    )
)
_GRPC_OPTIONS = (
    ("grpc.so_reuseport", 0),  # else a second server takes half the connections of the first
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.http2.max_ping_strikes", 0),  # else a long prefill ends with "too_many_pings"
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    *chunks.WINDOW_OPTIONS,
)


class StartupError(Exception):
    """The server cannot start; the message says in one line why."""


class Server:
    """A server in this process. `start` once, then `drain`, then `stop`; all on one event loop."""

    def __init__(self, config: ServerConfig, *, health: Health | None = None) -> None:
        self.config = config
        self.health = health or Health()
        self.metrics = Metrics(legacy_names=config.legacy_metric_names)
        self.base: LoadedBase
        self.engine: Engine
        self.residency: AdapterResidency
        self.registry: Registry
        self.verifier: Verifier | None = None
        self.gate: SignatureGate
        self.dispatcher: Dispatcher
        self.http: HttpServer | None = None
        self.registry_http: Address | None = None
        self.merged: AdapterUse | None = None
        self._interceptor = RpcInterceptor(self.metrics)
        self._draining = asyncio.Event()
        self._cleanup = contextlib.AsyncExitStack()  # what to end, the latest first

    async def start(self) -> dict[str, Any]:
        """Binds, loads and serves. Returns what the ready line says.

        Raises:
            StartupError: a port is taken, or the registry or the base cannot be opened. Nothing is left behind.
        """
        try:
            self._ask_for_tokens()
            server, address = self._bind()
            self._start_http()
            await _in_executor(self._open)
            self._start_registry_http()
            self.dispatcher = Dispatcher(self.metrics)
            self.engine = self._build_engine()
            self._describe_metrics()
            self._add_services(server)
            self._cleanup.push_async_callback(server.stop, _FLUSH_SECONDS)
            self.engine.start()
            self._cleanup.push_async_callback(_in_executor, self.engine.stop, _ENGINE_STOP_SECONDS)
            await server.start()
            self.health.ready(self.engine)
            self._watch()
        except BaseException:
            await self.stop()
            raise
        return {
            "grpc": str(address),
            "http": str(self.http.address) if self.http else "",
            **({"registry_http": str(self.registry_http)} if self.registry_http else {}),
            "base_model": self.base.name,
            "base_digest": self.base.digest,
            "device": self.base.device,
            "backend": self.base.backend,
        }

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

    def _ask_for_tokens(self) -> None:
        config = self.config
        if config.auth_keys is None:
            if not config.listen.is_loopback:
                log_event(logging.WARNING, "open_to_all", listen=str(config.listen), hint="--auth-keys asks who calls")
            return
        try:
            verifier = TokenVerifier(
                config.auth_keys,
                issuer=config.auth_issuer,
                audience=config.auth_audience,
                tenant_claim=config.auth_tenant_claim,
            )
        except (InvalidKeys, OSError) as error:
            raise StartupError(f"auth_keys: {error}") from error
        self._interceptor.admit_by(Admission(verifier, lambda digest: self.registry.adapter_names(digest)))

    def _bind(self) -> tuple[grpc.aio.Server, Address]:
        """Takes the port before the base is loaded: a port that is in use should not take minutes to notice."""
        server = grpc.aio.server(interceptors=(self._interceptor,), options=_GRPC_OPTIONS)
        address = self.config.listen
        try:
            _check_free(address)
            credentials = self._credentials()
            if credentials is None:
                port = server.add_insecure_port(str(address))
            else:
                port = server.add_secure_port(str(address), credentials)
        except (RuntimeError, OSError) as error:
            raise StartupError(f"cannot listen on {address}: {error}") from error
        return server, address.with_port(port)

    def _credentials(self) -> grpc.ServerCredentials | None:
        cert, key = self.config.tls_cert, self.config.tls_key
        if cert is None or key is None:
            return None
        tls_context(cert, key)  # names what cannot be used: gRPC would only say that it could not bind
        return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])

    def _start_http(self) -> None:
        if self.config.http is None:
            return
        try:
            self.http = HttpServer(self.config.http, health=self.health.report, metrics=self.metrics.scrape)
        except OSError as error:
            raise StartupError(f"cannot listen on {self.config.http}: {error.strerror or error}") from error
        self._cleanup.callback(self.http.stop)
        self.http.start()

    def _start_registry_http(self) -> None:
        config, address = self.config, self.config.registry_http
        if address is None:
            return
        certificate, key = config.registry_http_tls_cert, config.registry_http_tls_key
        try:
            tls = tls_context(certificate, key) if certificate and key else None
            users = HttpUsers(config.registry_http_users) if config.registry_http_users else None
        except (InvalidUsers, OSError) as error:
            raise StartupError(f"registry_http: {error}") from error
        try:
            server = registry_http_server(address.host, address.port, Distribution(self.registry), tls=tls, users=users)
        except OSError as error:
            raise StartupError(f"cannot listen on {address}: {error.strerror or error}") from error
        self.registry_http = address.with_port(server.port)
        self._cleanup.callback(server.stop)
        server.start()

    def _open(self) -> None:
        """Opens the registry and loads the base: seconds, or minutes where the base is quantized for the first time."""
        config = self.config
        try:
            self.registry = Registry(
                config.registry,
                max_blob_bytes=config.residency.max_adapter_bytes,
                mutable_tags=config.mutable_tags,
                quotas=config.quotas,
                reserve_bytes=_RESERVE_BYTES,
            )
            self._cleanup.callback(self.registry.close)
            if config.policy is not None:
                self.verifier = Verifier(self.registry, PolicyFile(config.policy))
            self.gate = SignatureGate(self.registry, self.verifier)
            if config.merge:
                self.gate.resolve(config.merge)  # what is not there, or not signed, is told before the base is loaded
            self.base = load_base(
                config.base,
                cache=config.base_cache,
                device=config.device,
                backend=config.backend,
                ops=config.ops,
                threads=config.threads,
                merge=self._read_merged if config.merge else None,
            )
        except (RegistryError, UnsupportedModel, OSError, ValueError) as error:
            raise StartupError(str(error)) from error

    def _read_merged(self, weights: BaseWeights) -> LoweredAdapter:
        record = self.gate.resolve(self.config.merge)
        self.merged = AdapterUse(self.config.merge, record.name, record.digest, 1.0)
        reader = AdapterReader(self.gate, weights, self.config.residency, cache=self._lowered_cache())
        return reader.read(record.digest, lambda stage, record: None)[1]

    def _lowered_cache(self) -> LoweredCache:
        return LoweredCache(self.config.base_cache / "lowered", max_bytes=self.config.residency.lowered_cache_bytes)

    def _build_engine(self) -> Engine:
        base, config = self.base, self.config
        slots = AdapterSlots.for_base(
            base.weights.shape,
            num_slots=config.residency.adapter_slots,
            backend=base.backend,
            device=base.device,
            device_bytes=config.residency.device_bytes,
            max_rank=config.residency.max_rank,
        )
        self.residency = AdapterResidency(
            registry=self.gate,
            base=base.weights,
            slots=slots,
            config=config.residency,
            observer=self.metrics,
            leases=self.registry,
            cache=self._lowered_cache(),
        )
        self._cleanup.push_async_callback(_in_executor, self.residency.close)
        if self.merged is not None:
            self.residency.keep_merged(self.merged.digest)
        return Engine(
            decoder=base.decoder,
            slots=slots,
            residency=self.residency,
            config=config.engine,
            base_digest=base.digest,
            eos_token_ids=base.tokenizer.eos_token_ids,
            on_step=self.dispatcher.on_step,
            tenant_weights=config.tenant_weights,
        )

    def _describe_metrics(self) -> None:
        config = self.config
        self.metrics.describe(
            base_model=self.base.name,
            quantization=self.base.quantization,
            version=version("hotshoe"),
            page_tokens=config.engine.page_tokens,
            pages=config.engine.kv_tokens // config.engine.page_tokens,
            sources=Sources(
                residents=self.residency.residents,
                waiting_adapters=lambda: [name for name, _ in self.dispatcher.waiting_adapters()],
                blob_bytes=self._blob_bytes,
                max_adapters=config.residency.adapter_slots,
            ),
        )

    def _blob_bytes(self) -> float:
        try:
            return self.registry.stats().blob_bytes
        except StoreUnavailable:
            return math.nan

    def _add_services(self, server: grpc.aio.Server) -> None:
        doctor = self._build_doctor()
        transfers = self._build_transfers(doctor)
        self.registry.heal_from(RemoteBlobs(transfers, self.metrics.damaged_blob))
        pull_through = PullThrough(
            self.registry, transfers, self._executor("pulling", _PULLING_THREADS), observer=self.metrics
        )
        generation = GenerationService(
            GenerationParts(
                engine=self.engine,
                dispatcher=self.dispatcher,
                mapper=self._request_mapper(),
                pull_through=pull_through,
                tokenizer=self.base.tokenizer,
                metrics=self.metrics,
                model_info=self._model_info(),
                tenant_metadata=self.config.tenant_metadata,
                stream_buffer_tokens=self.config.stream_buffer_tokens,
                executor=self._executor("mapping", _MAPPING_THREADS),
            )
        )
        residency = ResidencyService(
            ResidencyParts(
                residency=self.residency,
                registry=self.registry,
                gate=self.gate,
                dispatcher=self.dispatcher,
                max_adapters=self.config.residency.adapter_slots,
                draining=self._draining,
                executor=self._executor("loading", _LOADING_THREADS),
                pull_through=pull_through,
            )
        )
        registry = RegistryService(
            self.registry,
            self.base.weights.shape,
            transfers=transfers,
            doctor=doctor,
            publish_doctor=self.config.doctor,
            gate=self.gate,
            checking=self._executor("checking", _CHECKING_THREADS, initializer=let_others_first),
            verifier=self.verifier,
        )
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(generation, server)  # type: ignore[no-untyped-call]
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(registry, server)  # type: ignore[no-untyped-call]
        residency_pb2_grpc.add_ResidencyServiceServicer_to_server(residency, server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self.health, SERVICES), server)
        if self.config.reflection:
            names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)

    def _build_doctor(self) -> Doctor:
        limits = self.config.residency
        doctor = Doctor(
            registry=self.registry,
            base=self.base.weights,
            spectra=Spectra(self.config.base_cache, self.base.weights),
            limits=AdapterLimits(max_rank=limits.max_rank, max_bytes=limits.max_adapter_bytes),
            pace=self.residency.pace,
            cache=self._lowered_cache(),
        )
        self._cleanup.push_async_callback(doctor.close)
        if self.config.doctor != "off":
            doctor.warm()
        return doctor

    def _build_transfers(self, doctor: Doctor) -> Transfers:
        loop = asyncio.get_running_loop()

        def refuse_bad(name: str, files: Mapping[str, Path], approximate_rank: int) -> None:
            """Waits on the transfer's thread for what the event loop has examined."""
            examining = doctor.refuse_bad(name, files, approximate_rank=approximate_rank)
            asyncio.run_coroutine_threadsafe(examining, loop).result()

        return Transfers(
            self.registry,
            self.base.weights.shape,
            remotes=self.config.remotes,
            docker_config=self.config.docker_config,
            executor=self._executor("transfers", _TRANSFER_THREADS),
            observer=self.metrics,
            refuse_bad=refuse_bad if self.config.doctor == "require" else None,
        )

    def _executor(
        self, name: str, threads: int, *, initializer: Callable[[], None] | None = None
    ) -> ThreadPoolExecutor:
        """Threads of their own, so that requests do not queue behind uploads, nor either behind loads."""
        executor = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=initializer)
        self._cleanup.callback(executor.shutdown, wait=False, cancel_futures=True)
        return executor

    def _request_mapper(self) -> RequestMapper:
        spec = self.base.spec
        return RequestMapper(
            tokenizer=self.base.tokenizer,
            resolve=self.gate.resolve,
            vocab_size=spec.vocab_size,
            max_tokens=min(spec.max_sequence_length, self.config.engine.kv_tokens),
            merged=self.merged,
        )

    def _model_info(self) -> generation_pb2.GetModelInfoResponse:
        base, config = self.base, self.config
        return generation_pb2.GetModelInfoResponse(
            base_model=base.name,
            base_digest=base.digest,
            quantization=base.quantization,
            device=base.device,
            max_sequence_length=min(base.spec.max_sequence_length, config.engine.kv_tokens),
            max_running_requests=config.engine.max_running_requests,
            max_resident_adapters=config.residency.adapter_slots,
            adapter_kinds=sorted(ADAPTER_KINDS),
            eos_token_id=min(base.tokenizer.eos_token_ids, default=0),
            merged=self._merge_message(),
        )

    def _merge_message(self) -> generation_pb2.MergedAdapter | None:
        report = self.base.merge
        if report is None or self.merged is None:
            return None
        log_event(
            logging.INFO,
            "merged",
            name=self.merged.name,
            digest=self.merged.digest,
            linears=report.linears,
            bfloat16_keeps=round(report.kept.share, 4),
            nf4_would_keep=round(report.nf4_kept.share, 4),
        )
        return generation_pb2.MergedAdapter(
            name=self.merged.name,
            digest=self.merged.digest,
            linears=report.linears,
            kept=report.kept.share,
            error=report.kept.error,
            nf4_kept=report.nf4_kept.share,
            nf4_error=report.nf4_kept.error,
        )

    def _watch(self) -> None:
        watchdog = asyncio.create_task(self._watchdog())
        self._cleanup.callback(watchdog.cancel)
        if self.config.collect_every_seconds:
            collector = asyncio.create_task(self._collect_garbage(self.config.collect_every_seconds))
            self._cleanup.callback(collector.cancel)

    async def _collect_garbage(self, every_seconds: float) -> None:
        while True:
            await asyncio.sleep(every_seconds)
            try:
                report = await asyncio.get_running_loop().run_in_executor(None, self.registry.collect_garbage)
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
    """Serves until SIGTERM or SIGINT. Returns the exit code: 0, or 1 if it could not start."""
    _share_the_interpreter()
    server = Server(config)
    try:
        ready = await server.start()
    except StartupError as error:
        log_event(logging.ERROR, "cannot_start", reason=str(error))
        return 1
    _settle()
    signals = _Signals()
    print(json.dumps({"event": "ready", **ready}), flush=True)
    log_event(logging.INFO, "ready", **ready)
    await signals.first.wait()
    log_event(logging.INFO, "draining", grace_seconds=config.grace_seconds)
    ending = asyncio.create_task(_end(server, config.grace_seconds))
    second = asyncio.create_task(signals.second.wait())
    await asyncio.wait({ending, second}, return_when=asyncio.FIRST_COMPLETED)
    log_event(logging.INFO, "stopped", at_once=not ending.done())
    return 0


def _check_free(address: Address) -> None:
    """Raises StartupError if a port is taken, which gRPC would say in two lines, and not why in the second."""
    for family, kind, _, _, place in socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(place)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise StartupError(f"cannot listen on {address}: {error.strerror}") from error


def _share_the_interpreter() -> None:
    """Has a thread that runs Python give way to the engine's in a fraction of a step, not in 5 ms."""
    sys.setswitchinterval(_SWITCH_SECONDS)


def _settle() -> None:
    """What was made at the start stays: the garbage collector need not look at it again in the middle of a step."""
    gc.collect()
    gc.freeze()


async def _in_executor(function: Callable[..., object], *args: object) -> None:
    await asyncio.get_running_loop().run_in_executor(None, function, *args)


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
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._note)

    def _note(self) -> None:
        (self.second if self.first.is_set() else self.first).set()
