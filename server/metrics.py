"""What fills the metrics of `metric_table.py`, and what a scraper gets.

Adapters are labelled by name, never by digest, and only so many of them: the rest share one label.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, exposition
from prometheus_client.core import GaugeMetricFamily, Metric

from hotshoe.server.adapter_labels import MAX_ADAPTER_LABELS, OTHER_ADAPTERS, AdapterLabels
from hotshoe.server.metric_table import LEGACY_METRICS, METRICS, MODEL, Kind, MetricSpec

BASE_ALONE = "_base"


class Resident(Protocol):
    """An adapter in memory, as far as metrics tell it."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def tier(self) -> str: ...  # "host" or "device"
    @property
    def pinned(self) -> bool: ...
    @property
    def size_bytes(self) -> int: ...


class Step(Protocol):
    """One step of the engine, as far as metrics tell it."""

    @property
    def running(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def kv_usage(self) -> float: ...
    @property
    def rows(self) -> int: ...
    @property
    def distinct_adapters(self) -> int: ...
    @property
    def preemptions(self) -> int: ...
    @property
    def prefix_queries(self) -> int: ...
    @property
    def prefix_hits(self) -> int: ...


class Rpc(Protocol):
    """A gRPC method, as the metrics label it."""

    @property
    def type(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True, slots=True)
class FinishedRequest:
    """A request's end. Seconds are None where it did not get that far."""

    adapters: tuple[str, ...]  # names
    code: str  # of gRPC, e.g. "OK"
    admitted: bool  # False: refused before it reached the queue
    finish_reasons: tuple[str, ...]  # of its answers: stop, length, abort, error
    prompt_tokens: int
    generation_tokens: int
    seconds: float
    queue_seconds: float | None = None
    first_token_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """What is asked for at each scrape; called on the scraper's thread."""

    residents: Callable[[], Sequence[Resident]]
    waiting_adapters: Callable[[], Sequence[str]]  # names
    blob_bytes: Callable[[], float]
    max_adapters: int


class Metrics:
    """The server's metrics in a registry of their own. Every method may be called on any thread."""

    def __init__(self, *, legacy_names: bool = False) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry(auto_describe=False)
        self._specs = {spec.name: spec for spec in (*METRICS, *(LEGACY_METRICS if legacy_names else ()))}
        self._metrics = {
            name: _create(spec, self.registry) for name, spec in self._specs.items() if spec.kind is not Kind.SCRAPED
        }
        self._adapters = AdapterLabels()
        self._model: dict[str, str] = {}
        self._children: dict[tuple[str, ...], Any] = {}

    def describe(
        self, *, base_model: str, quantization: str, version: str, page_tokens: int, pages: int, sources: Sources
    ) -> None:
        """Sets what is known once the base model is ready; the vLLM block exists from now on."""
        self._model = {"model_name": base_model, "engine": "0"}
        for spec in self._specs.values():
            if spec.labels == MODEL and spec.kind is not Kind.SCRAPED:
                self._of_model(spec.name)
        for reason in ("stop", "length", "abort", "error"):
            self._of_model("vllm:request_success_total", reason)
        self._of_model("vllm:cache_config_info", str(page_tokens), str(pages)).set(1)
        self._child("hotshoe_build_info", version, base_model, quantization).set(1)
        self.registry.register(_ScrapeCollector(self._specs, self._model, sources))

    def step(self, stats: Step, *, ended: int) -> None:
        """Counts one step of the engine, after which `stats` holds; `ended` answers left the batch with it."""
        self._of_model("vllm:num_requests_running").set(stats.running)
        self._of_model("vllm:num_requests_waiting").set(stats.waiting)
        self._of_model("vllm:kv_cache_usage_perc").set(stats.kv_usage)
        self._of_model("vllm:num_preemptions_total").inc(stats.preemptions)
        self._of_model("vllm:prefix_cache_queries_total").inc(stats.prefix_queries)
        self._of_model("vllm:prefix_cache_hits_total").inc(stats.prefix_hits)
        if not stats.rows:
            return
        self._of_model("vllm:iteration_tokens_total").observe(stats.rows)
        self._child("hotshoe_batch_size").observe(stats.running + ended)
        self._child("hotshoe_batch_distinct_adapters").observe(stats.distinct_adapters)

    def tokens_generated(self, count: int, seconds_since_last: float | None) -> None:
        """Counts new tokens of one answer; `seconds_since_last` is None for its first."""
        self._of_model("vllm:generation_tokens_total").inc(count)
        if seconds_since_last is None:
            return
        for name in ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"):
            if name in self._metrics:
                self._of_model(name).observe(seconds_since_last)

    def request_finished(self, request: FinishedRequest) -> None:
        """Counts a request, whatever its end."""
        for name in request.adapters or (BASE_ALONE,):
            self._child("hotshoe_adapter_requests_total", self._adapters.of(name), request.code).inc()
        if request.admitted:
            self._admitted_request(request)

    def _admitted_request(self, request: FinishedRequest) -> None:
        for reason in request.finish_reasons:
            self._of_model("vllm:request_success_total", reason).inc()
        self._of_model("vllm:prompt_tokens_total").inc(request.prompt_tokens)
        self._of_model("vllm:request_prompt_tokens").observe(request.prompt_tokens)
        self._of_model("vllm:request_generation_tokens").observe(request.generation_tokens)
        self._of_model("vllm:e2e_request_latency_seconds").observe(request.seconds)
        if request.queue_seconds is not None and request.first_token_seconds is not None:
            self._request_times(request, request.queue_seconds, request.first_token_seconds)
        for name in request.adapters or (BASE_ALONE,):
            label = self._adapters.of(name)
            self._child("hotshoe_adapter_tokens_total", label, "prompt").inc(request.prompt_tokens)
            self._child("hotshoe_adapter_tokens_total", label, "generation").inc(request.generation_tokens)

    def _request_times(self, request: FinishedRequest, queue_seconds: float, first_token_seconds: float) -> None:
        decode = max(request.seconds - first_token_seconds, 0.0)
        self._of_model("vllm:time_to_first_token_seconds").observe(first_token_seconds)
        self._of_model("vllm:request_queue_time_seconds").observe(queue_seconds)
        self._of_model("vllm:request_prefill_time_seconds").observe(max(first_token_seconds - queue_seconds, 0.0))
        self._of_model("vllm:request_decode_time_seconds").observe(decode)
        if request.generation_tokens > 1:
            per_token = decode / (request.generation_tokens - 1)
            self._of_model("vllm:request_time_per_output_token_seconds").observe(per_token)

    # ResidencyObserver
    def loaded(self, key: str, source: str, seconds_by_stage: Mapping[str, float]) -> None:
        self._child("hotshoe_adapter_loads_total", source, "ok").inc()
        for stage, seconds in seconds_by_stage.items():
            self._child("hotshoe_adapter_load_seconds", stage).observe(seconds)

    def load_failed(self, key: str, error: Exception) -> None:
        self._child("hotshoe_adapter_loads_total", "disk", type(error).__name__).inc()

    def evicted(self, key: str, tier: str, reason: str) -> None:
        self._child("hotshoe_adapter_evictions_total", tier, reason).inc()

    def lookup(self, hit: bool) -> None:
        self._child("hotshoe_adapter_cache_requests_total", "hit" if hit else "miss").inc()

    # The registry
    def damaged_blob(self, healed: bool) -> None:
        """Counts a blob that was found damaged or lost, by whether it is whole again."""
        self._child("hotshoe_registry_damaged_blobs_total", "healed" if healed else "lost").inc()

    # CopyObserver
    def copied(self, op: str, remote: str, result: str, size_bytes: int, seconds: float) -> None:
        self._child("hotshoe_remote_copies_total", op, remote, result).inc()
        self._child("hotshoe_remote_bytes_total", op, remote).inc(size_bytes)
        self._child("hotshoe_remote_copy_seconds", op, remote).observe(seconds)

    def pulled_through(self, result: str) -> None:
        self._child("hotshoe_pull_through_total", result).inc()

    # RPCs
    def rpc_started(self, rpc: Rpc) -> None:
        self._child("grpc_server_started_total", rpc.type, rpc.service, rpc.name).inc()

    def rpc_handled(self, rpc: Rpc, code: str, seconds: float) -> None:
        self._child("grpc_server_handled_total", rpc.type, rpc.service, rpc.name, code).inc()
        self._child("grpc_server_handling_seconds", rpc.type, rpc.service, rpc.name).observe(seconds)
        if rpc.service.endswith(".RegistryService"):
            self._child("hotshoe_registry_operations_total", rpc.name, code).inc()

    def scrape(self, accept: str) -> tuple[bytes, str]:
        """The scrape and its content type, for a scraper that accepts `accept`.

        OpenMetrics only for those who take names verbatim: for others the library would write `vllm:x` samples as
        `vllm_x` beneath a TYPE line that keeps the colon. The plain text format keeps it everywhere.
        """
        verbatim = [item for item in accept.split(",") if _takes_names_verbatim(item)]
        if verbatim:
            encode, content_type = exposition.choose_encoder(verbatim[0])
            return encode(self.registry), content_type
        return exposition.generate_latest(self.registry), exposition.CONTENT_TYPE_PLAIN_0_0_4

    def _of_model(self, name: str, *labels: str) -> Any:
        return self._child(name, *self._model.values(), *labels)

    def _child(self, name: str, *labels: str) -> Any:
        key = (name, *labels)
        if key not in self._children:  # .labels() costs more than what follows it
            metric = self._metrics[name]
            self._children[key] = metric.labels(*labels) if labels else metric
        return self._children[key]


class _ScrapeCollector:
    """Gauges of what is resident: asked at the scrape, so that nothing evicted stays as a series."""

    def __init__(self, specs: Mapping[str, MetricSpec], model: Mapping[str, str], sources: Sources) -> None:
        self._specs = specs
        self._model = tuple(model.values())
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        residents = self._sources.residents()
        yield self._gauge("vllm:lora_requests_info", [(self._requests_info(residents), time.time())])
        yield self._gauge("vllm:lora_adapter_loaded", self._loaded(residents))
        kinds = _count((resident.tier, resident.kind) for resident in residents)
        yield self._gauge("hotshoe_adapters_resident", kinds.items())
        sizes = {"host": 0, "device": 0}
        for resident in residents:
            sizes[resident.tier] += resident.size_bytes
        yield self._gauge("hotshoe_adapter_bytes", [((tier,), size) for tier, size in sizes.items()])
        yield self._gauge("hotshoe_registry_blob_bytes", [((), self._sources.blob_bytes())])

    def _requests_info(self, residents: Sequence[Resident]) -> tuple[str, ...]:
        on_device = sorted({resident.name for resident in residents if resident.tier == "device"})
        waiting = sorted(set(self._sources.waiting_adapters()))
        return (str(self._sources.max_adapters), _joined(on_device), _joined(waiting))

    def _loaded(self, residents: Sequence[Resident]) -> Iterable[tuple[tuple[str, ...], float]]:
        labels = AdapterLabels()
        named = [
            (labels.of(resident.name), "gpu" if resident.tier == "device" else "cpu", str(resident.pinned).lower())
            for resident in sorted(residents, key=lambda resident: resident.name)
        ]
        for key, number in _count(named).items():
            yield (*self._model, *key), number if key[0] == OTHER_ADAPTERS else 1

    def _gauge(self, name: str, samples: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
        spec = self._specs[name]
        family = GaugeMetricFamily(name, spec.help, labels=spec.labels)
        for labels, value in samples:
            family.add_metric(labels, value)
        return family


def _create(spec: MetricSpec, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    if spec.kind is Kind.COUNTER:
        return Counter(spec.name, spec.help, spec.labels, registry=registry)
    if spec.kind is Kind.HISTOGRAM:
        return Histogram(spec.name, spec.help, spec.labels, registry=registry, buckets=spec.buckets)
    return Gauge(spec.name, spec.help, spec.labels, registry=registry)


def _joined(names: Sequence[str]) -> str:
    """Routers split at commas, which no adapter's name has."""
    return ",".join(names[:MAX_ADAPTER_LABELS])


def _count(keys: Iterable[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    counts: dict[tuple[str, ...], int] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
    return counts


def _takes_names_verbatim(item: str) -> bool:
    media_type, *parameters = (part.strip() for part in item.split(";"))
    return media_type == "application/openmetrics-text" and "escaping=allow-utf-8" in parameters
