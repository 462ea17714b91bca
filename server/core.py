"""What a server serves from: the registry, the base model, and the engine over both. Knows nothing of ports."""

import asyncio
import contextlib
import logging
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hotshoe.registry.errors import RegistryError, StoreUnavailable
from hotshoe.registry.formats.base import BaseWeights
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.registry import Registry
from hotshoe.registry.signing.policy import PolicyFile
from hotshoe.registry.verification import Verifier
from hotshoe.server.adapters.adapter_places import AdapterPlaces
from hotshoe.server.adapters.adapter_reader import AdapterReader
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.lowered_cache import LoweredCache
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.adapters.signature_gate import SignatureGate
from hotshoe.server.config import ServerConfig
from hotshoe.server.engine.engine import Engine
from hotshoe.server.engine.kv_capacity import KvCapacity, kv_capacity
from hotshoe.server.engine.request import AdapterUse
from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.logs import log_event
from hotshoe.server.metrics import Metrics, Sources
from hotshoe.server.model.device_memory import free_bytes
from hotshoe.server.model.loader import LoadedBase, load_base
from hotshoe.server.services.dispatcher import Dispatcher
from hotshoe.server.startup import StartupError

_RESERVE_BYTES = 8 << 20  # of the registry's disk


class Core:
    """`open` first, on any thread, then `build_engine` on the event loop. `cleanup` ends what they made."""

    def __init__(self, config: ServerConfig, metrics: Metrics, cleanup: contextlib.AsyncExitStack) -> None:
        self.config = config
        self.metrics = metrics
        self.registry: Registry
        self.verifier: Verifier | None = None
        self.gate: SignatureGate
        self.base: LoadedBase
        self.merged: AdapterUse | None = None
        self.dispatcher: Dispatcher
        self.residency: AdapterResidency
        self.capacity: KvCapacity
        self.engine: Engine
        self._cleanup = cleanup

    def open(self) -> None:
        """Opens the registry and loads the base: seconds, or minutes where the base is quantized for the first time.

        Raises StartupError.
        """
        try:
            self._open_registry()
            self._load_base()
        except (RegistryError, UnsupportedModel, OSError, ValueError) as error:
            raise StartupError(str(error)) from error
        except (MemoryError, torch.OutOfMemoryError) as error:
            reason = str(error).partition("\n")[0] or "out of memory"
            raise StartupError(f"base {self.config.base}: no memory to load it: {reason}") from error

    def build_engine(self) -> None:
        """Makes the engine, which is not started yet, with the residency and the dispatcher that it works with.

        Raises StartupError where there is not so much memory.
        """
        self.dispatcher = Dispatcher(self.metrics)
        try:
            self._build_engine()
        except ValueError as error:
            raise StartupError(str(error)) from error
        except (MemoryError, OverflowError, RuntimeError) as error:
            limits = "--kv-tokens, --adapter-slots, --max-running-requests, --max-rank, --device-bytes"
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise StartupError(f"no memory for what {limits} ask for: {reason}") from error
        self._describe_metrics()

    def lowered_cache(self) -> LoweredCache:
        """Of adapters whose lowering needs the base."""
        return LoweredCache(self.config.base_cache / "lowered", max_bytes=self.config.residency.lowered_cache_bytes)

    def _build_engine(self) -> None:
        base, config = self.base, self.config
        slots = AdapterSlots.for_base(
            base.weights.shape,
            num_slots=config.residency.adapter_slots,
            backend=base.backend,
            device=base.device,
            device_bytes=config.residency.device_bytes,
            max_rank=config.residency.max_rank,
        )
        self._build_residency(slots)
        self.capacity = self._kv_capacity(slots)
        self.engine = Engine(
            decoder=base.decoder,
            slots=slots,
            residency=self.residency,
            config=config.engine,
            kv_tokens=self.capacity.tokens,
            base_digest=base.digest,
            eos_token_ids=base.tokenizer.eos_token_ids,
            on_step=self.dispatcher.on_step,
            tenant_weights=config.tenant_weights,
        )

    def _kv_capacity(self, slots: AdapterPlaces[Any]) -> KvCapacity:
        config, decoder = self.config, self.base.decoder
        free, adapters = free_bytes(decoder.backend.device), slots.bytes_to_come(config.residency.device_bytes)
        capacity = kv_capacity(config.engine, decoder, adapter_bytes=adapters, free_bytes=free)
        log_event(
            logging.INFO,
            "kv_cache",
            tokens=capacity.tokens,
            bytes=capacity.size_bytes,
            free_bytes=free,
            adapter_bytes=config.residency.device_bytes,
        )
        return capacity

    def _open_registry(self) -> None:
        config = self.config
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

    def _load_base(self) -> None:
        config = self.config
        if config.merge:
            self._check_merged(config.merge)  # before the base is loaded
        try:
            self.base = load_base(
                config.base,
                cache=config.base_cache,
                device=config.device,
                backend=config.backend,
                ops=config.ops,
                threads=config.threads,
                merge=self._read_merged if config.merge else None,
            )
        except OSError as error:
            if not Path(str(error.filename)).is_relative_to(config.base_cache):
                raise
            raise StartupError(f"--base-cache: {error.filename}: {error.strerror}") from error

    def _check_merged(self, reference: str) -> None:
        """Raises StartupError for an adapter that is not there, or not signed."""
        try:
            self.gate.resolve(reference)
        except RegistryError as error:
            raise StartupError(f"--merge: {error}") from error

    def _read_merged(self, weights: BaseWeights) -> LoweredAdapter:
        record = self.gate.resolve(self.config.merge)
        self.merged = AdapterUse(self.config.merge, record.name, record.digest, 1.0)
        reader = AdapterReader(self.gate, weights, self.config.residency, cache=self.lowered_cache())
        return reader.read(record.digest, lambda stage, record: None)[1]

    def _build_residency(self, slots: AdapterPlaces[Any]) -> None:
        self.residency = AdapterResidency(
            registry=self.gate,
            base=self.base.weights,
            slots=slots,
            config=self.config.residency,
            observer=self.metrics,
            leases=self.registry,
            cache=self.lowered_cache(),
        )
        self._cleanup.push_async_callback(asyncio.to_thread, self.residency.close)
        if self.merged is not None:
            self.residency.keep_merged(self.merged.digest)

    def _describe_metrics(self) -> None:
        config = self.config
        self.metrics.describe(
            base_model=self.base.name,
            quantization=self.base.quantization,
            version=version("hotshoe"),
            page_tokens=config.engine.page_tokens,
            pages=self.capacity.pages,
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
