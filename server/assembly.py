"""The services of one server, put together over its core."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health as grpc_health
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from hotshoe.protos.v1 import (
    generation_pb2,
    generation_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    residency_pb2,
    residency_pb2_grpc,
)
from hotshoe.registry.validation import AdapterLimits
from hotshoe.server.adapters.one_core import let_others_first
from hotshoe.server.config import ServerConfig
from hotshoe.server.core import Core
from hotshoe.server.logs import log_event
from hotshoe.server.model.grammars import Grammars, deep_executor
from hotshoe.server.model.spectra import Spectra
from hotshoe.server.services.admission import Admission
from hotshoe.server.services.doctor import Doctor
from hotshoe.server.services.generation import GenerationParts, GenerationService
from hotshoe.server.services.healing import RemoteBlobs
from hotshoe.server.services.health import Health, HealthServicer
from hotshoe.server.services.interceptors import RpcInterceptor
from hotshoe.server.services.model_info import model_info
from hotshoe.server.services.output_formats import OutputFormats
from hotshoe.server.services.pull_through import PullThrough
from hotshoe.server.services.registry import RegistryService
from hotshoe.server.services.requests import RequestMapper
from hotshoe.server.services.residency import ResidencyParts, ResidencyService
from hotshoe.server.services.tokens import InvalidKeys, TokenVerifier
from hotshoe.server.services.transfers import Transfers
from hotshoe.server.startup import StartupError

if TYPE_CHECKING:
    from aiohttp import web

_MAPPING_THREADS = 2
_LONG_THREADS = 1  # for prompts that take seconds to tokenize, and mostly are too long
_LOADING_THREADS = 4  # callers of LoadAdapter that wait at the same time
_TRANSFER_THREADS = 4  # callers of PushAdapter and PullAdapter that are served at the same time
_PULLING_THREADS = 4  # adapters that are fetched for requests at the same time
_CHECKING_THREADS = 1  # full checks of the registry: one at a time

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (generation_pb2, "GenerationService"),
        (registry_pb2, "RegistryService"),
        (residency_pb2, "ResidencyService"),
    )
)


def build_admission(config: ServerConfig, core: Core) -> Admission | None:
    """What decides who may call, if a server asks; before anything is opened. Raises StartupError."""
    if config.auth_keys is None:
        if not config.listen.is_loopback:
            log_event(logging.WARNING, "open_to_all", listen=str(config.listen), hint="--auth-keys asks who calls")
        return None
    try:
        verifier = TokenVerifier(
            config.auth_keys,
            issuer=config.auth_issuer,
            audience=config.auth_audience,
            tenant_claim=config.auth_tenant_claim,
        )
    except InvalidKeys as error:
        raise StartupError(f"--auth-keys: {error}") from error
    except OSError as error:
        raise StartupError(f"--auth-keys: {error.filename or config.auth_keys}: {error.strerror}") from error
    return Admission(verifier, lambda digest: core.registry.adapter_names(digest))


class Assembly:
    """Makes the services and their threads, on the event loop. `cleanup` ends what it made."""

    def __init__(self, core: Core, health: Health, draining: asyncio.Event, cleanup: contextlib.AsyncExitStack) -> None:
        self._core = core
        self._health = health
        self._draining = draining
        self._cleanup = cleanup
        self._doctor = self._build_doctor()
        self._transfers = self._build_transfers(self._doctor)
        self._pull_through = PullThrough(
            core.registry, self._transfers, self._executor("pulling", _PULLING_THREADS), observer=core.metrics
        )
        core.registry.heal_from(RemoteBlobs(self._transfers, core.metrics.damaged_blob))
        self.generation = self._generation()
        self.registry = self._registry()
        self.residency = self._residency()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Has a server offer all services."""
        generation_pb2_grpc.add_GenerationServiceServicer_to_server(self.generation, server)
        registry_pb2_grpc.add_RegistryServiceServicer_to_server(self.registry, server)
        residency_pb2_grpc.add_ResidencyServiceServicer_to_server(self.residency, server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(self._health, SERVICES), server)
        if self._core.config.reflection:
            names = (*SERVICES, grpc_health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)

    def openai_application(self, interceptor: RpcInterceptor) -> "web.Application":
        """OpenAI's API over the same services, behind the same interceptor."""
        from hotshoe.server.openai.api import OpenAiApi

        api = OpenAiApi(
            interceptor,
            self.generation,
            self.registry,
            base_model=self._core.base.name,
            health=self._health.report,
        )
        return api.application()

    def _generation(self) -> GenerationService:
        core, config = self._core, self._core.config
        mapper = RequestMapper(
            tokenizer=core.base.tokenizer,
            resolve=core.gate.resolve,
            vocab_size=core.base.spec.vocab_size,
            max_tokens=min(core.base.spec.max_sequence_length, core.capacity.tokens),
            merged=core.merged,
        )
        return GenerationService(
            GenerationParts(
                engine=core.engine,
                dispatcher=core.dispatcher,
                mapper=mapper,
                pull_through=self._pull_through,
                tokenizer=core.base.tokenizer,
                metrics=core.metrics,
                model_info=model_info(core.base, config, core.capacity, core.merged),
                tenant_metadata=config.tenant_metadata,
                stream_buffer_tokens=config.stream_buffer_tokens,
                executor=self._executor("mapping", _MAPPING_THREADS),
                long_executor=self._executor("mapping-long", _LONG_THREADS, initializer=let_others_first),
                formats=self._formats(),
            )
        )

    def _formats(self) -> OutputFormats:
        base = self._core.base
        executor = deep_executor("formats", initializer=let_others_first)
        self._cleanup.callback(executor.shutdown, wait=False, cancel_futures=True)
        formats = OutputFormats(Grammars(base.tokenizer, vocab_size=base.spec.vocab_size), executor)
        formats.warm()
        return formats

    def _registry(self) -> RegistryService:
        core = self._core
        return RegistryService(
            core.registry,
            core.base.weights.shape,
            transfers=self._transfers,
            doctor=self._doctor,
            publish_doctor=core.config.doctor,
            gate=core.gate,
            checking=self._executor("checking", _CHECKING_THREADS, initializer=let_others_first),
            verifier=core.verifier,
        )

    def _residency(self) -> ResidencyService:
        core = self._core
        return ResidencyService(
            ResidencyParts(
                residency=core.residency,
                registry=core.registry,
                gate=core.gate,
                dispatcher=core.dispatcher,
                max_adapters=core.config.residency.adapter_slots,
                draining=self._draining,
                executor=self._executor("loading", _LOADING_THREADS),
                pull_through=self._pull_through,
            )
        )

    def _build_doctor(self) -> Doctor:
        core, limits = self._core, self._core.config.residency
        doctor = Doctor(
            registry=core.registry,
            base=core.base.weights,
            spectra=Spectra(core.config.base_cache, core.base.weights),
            limits=AdapterLimits(max_rank=limits.max_rank, max_bytes=limits.max_adapter_bytes),
            pace=core.residency.pace,
            cache=core.lowered_cache(),
        )
        self._cleanup.push_async_callback(doctor.close)
        if core.config.doctor != "off":
            doctor.warm()
        return doctor

    def _build_transfers(self, doctor: Doctor) -> Transfers:
        core, loop = self._core, asyncio.get_running_loop()

        def refuse_bad(name: str, files: Mapping[str, Path], approximate_rank: int) -> None:
            """Waits on the transfer's thread for what the event loop has examined."""
            examining = doctor.refuse_bad(name, files, approximate_rank=approximate_rank)
            asyncio.run_coroutine_threadsafe(examining, loop).result()

        return Transfers(
            core.registry,
            core.base.weights.shape,
            remotes=core.config.remotes,
            docker_config=core.config.docker_config,
            executor=self._executor("transfers", _TRANSFER_THREADS),
            observer=core.metrics,
            refuse_bad=refuse_bad if core.config.doctor == "require" else None,
        )

    def _executor(
        self, name: str, threads: int, *, initializer: Callable[[], None] | None = None
    ) -> ThreadPoolExecutor:
        """Threads of their own, so that requests do not queue behind uploads, nor either behind loads."""
        executor = ThreadPoolExecutor(threads, thread_name_prefix=name, initializer=initializer)
        self._cleanup.callback(executor.shutdown, wait=False, cancel_futures=True)
        return executor
