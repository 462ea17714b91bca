from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from hotshoe.server.adapter_labels import MAX_ADAPTER_LABELS, OTHER_ADAPTERS
from hotshoe.server.engine.report import StepStats
from hotshoe.server.metric_table import LEGACY_METRICS, METRICS, Kind
from hotshoe.server.metrics import FinishedRequest, Metrics, Sources

PROMETHEUS_2 = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
    "application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,*/*;q=0.1"
)


@dataclass(frozen=True)
class Resident:
    name: str
    kind: str = "LORA"
    tier: str = "device"
    pinned: bool = False
    size_bytes: int = 100


@dataclass(frozen=True)
class Rpc:
    type: str = "unary"
    service: str = "hotshoe.v1.RegistryService"
    name: str = "GetAdapter"


@dataclass
class World:
    """What the metrics ask for at a scrape."""

    residents: list[Resident] = field(default_factory=list)
    waiting: Sequence[str] = ()
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        sources = Sources(
            residents=lambda: self.residents,
            waiting_adapters=lambda: self.waiting,
            blob_bytes=lambda: 4096,
            max_adapters=8,
        )
        self.metrics.describe(
            base_model="tiny", quantization="nf4", version="0.1.0", page_tokens=16, pages=64, sources=sources
        )

    def scrape(self) -> str:
        return self.metrics.scrape("")[0].decode()

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def world() -> World:
    return World()


def _stats(**changed: object) -> StepStats:
    values = {
        "running": 3,
        "waiting": 2,
        "kv_usage": 0.25,
        "rows": 40,
        "prefill_tokens": 38,
        "decode_tokens": 2,
        "distinct_adapters": 2,
        "preemptions": 1,
        "prefix_queries": 64,
        "prefix_hits": 32,
        "seconds": 0.01,
        "waiting_adapters": (),
    }
    return StepStats(**{**values, **changed})


def _finished(*adapters: str, **changed: object) -> FinishedRequest:
    values = {
        "adapters": adapters,
        "code": "OK",
        "admitted": True,
        "finish_reasons": ("stop",),
        "prompt_tokens": 10,
        "generation_tokens": 5,
        "seconds": 2.0,
        "queue_seconds": 0.1,
        "first_token_seconds": 0.6,
    }
    return FinishedRequest(**{**values, **changed})


def _use_everything(world: World) -> None:
    world.residents = [Resident("poet"), Resident("judge", kind="IA3", tier="host")]
    world.metrics.step(_stats(), ended=0)
    world.metrics.tokens_generated(1, None)
    world.metrics.tokens_generated(1, 0.02)
    world.metrics.request_finished(_finished("poet"))
    world.metrics.loaded("sha256:0", "disk", {"verify": 0.01, "load": 0.2})
    world.metrics.load_failed("sha256:0", ValueError())
    world.metrics.evicted("sha256:0", "device", "lru")
    world.metrics.lookup(True)
    world.metrics.lookup(False)
    world.metrics.damaged_blob(True)
    world.metrics.copied("pull", "oci", "ok", 1024, 0.5)
    world.metrics.pulled_through("hit")
    world.metrics.rpc_started(Rpc())
    world.metrics.rpc_handled(Rpc(), "OK", 0.001)


def test_every_metric_of_the_table_has_samples_once_used(world: World) -> None:
    _use_everything(world)
    samples = {sample.name for family in text_string_to_metric_families(world.scrape()) for sample in family.samples}
    for spec in METRICS:
        name = spec.name + "_count" if spec.kind is Kind.HISTOGRAM else spec.name
        assert name in samples, spec.name


def test_the_vllm_block_is_there_before_the_first_request(world: World) -> None:
    for spec in METRICS:
        if spec.labels == ("model_name", "engine"):
            name = spec.name + "_count" if spec.kind is Kind.HISTOGRAM else spec.name
            assert world.value(name, model_name="tiny", engine="0") == 0, spec.name


def test_a_parser_reads_every_line_and_no_created_series_is_there(world: World) -> None:
    _use_everything(world)
    text = world.scrape()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    sample_lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert sum(len(family.samples) for family in families.values()) == len(sample_lines)
    assert all(family.type != "unknown" for family in families.values())
    assert "_created" not in text


def test_a_scraper_that_escapes_names_gets_plain_text_with_colons(world: World) -> None:
    body, content_type = world.metrics.scrape(PROMETHEUS_2)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert b'vllm:num_requests_running{engine="0",model_name="tiny"} 0.0' in body
    assert b"vllm_" not in body


def test_a_scraper_that_takes_names_verbatim_gets_openmetrics_with_colons(world: World) -> None:
    _use_everything(world)
    body, content_type = world.metrics.scrape(PROMETHEUS_3)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert "escaping=allow-utf-8" in content_type
    names = {sample.name for family in parse_openmetrics(body.decode()) for sample in family.samples}
    assert "vllm:num_requests_running" in names
    assert not any(name.startswith("vllm_") for name in names)


def test_a_step_sets_gauges_and_counts(world: World) -> None:
    world.metrics.step(_stats(), ended=0)
    world.metrics.step(_stats(running=1, waiting=0), ended=2)
    model = {"model_name": "tiny", "engine": "0"}
    assert world.value("vllm:num_requests_running", **model) == 1
    assert world.value("vllm:num_requests_waiting", **model) == 0
    assert world.value("vllm:kv_cache_usage_perc", **model) == 0.25
    assert world.value("vllm:num_preemptions_total", **model) == 2
    assert world.value("vllm:iteration_tokens_total_sum", **model) == 80
    assert world.value("hotshoe_batch_size_sum") == 3 + 3
    assert world.value("hotshoe_batch_distinct_adapters_count") == 2
    assert world.value("hotshoe_batch_distinct_adapters_bucket", le="1.0") == 0
    assert world.value("hotshoe_batch_distinct_adapters_bucket", le="2.0") == 2


def test_a_step_that_computed_nothing_is_in_no_histogram(world: World) -> None:
    world.metrics.step(_stats(rows=0, running=0), ended=0)
    assert world.value("vllm:iteration_tokens_total_count", model_name="tiny", engine="0") == 0


def test_a_finished_request_is_split_into_queue_prefill_and_decode(world: World) -> None:
    world.metrics.request_finished(_finished("poet", "judge"))
    model = {"model_name": "tiny", "engine": "0"}
    assert world.value("vllm:request_queue_time_seconds_sum", **model) == pytest.approx(0.1)
    assert world.value("vllm:request_prefill_time_seconds_sum", **model) == pytest.approx(0.5)
    assert world.value("vllm:request_decode_time_seconds_sum", **model) == pytest.approx(1.4)
    assert world.value("vllm:request_time_per_output_token_seconds_sum", **model) == pytest.approx(0.35)
    assert world.value("vllm:request_success_total", finished_reason="stop", **model) == 1
    for adapter in ("poet", "judge"):
        assert world.value("hotshoe_adapter_requests_total", adapter=adapter, code="OK") == 1
        assert world.value("hotshoe_adapter_tokens_total", adapter=adapter, kind="generation") == 5


def test_a_refused_request_counts_by_adapter_and_code_only(world: World) -> None:
    world.metrics.request_finished(_finished("poet", code="RESOURCE_EXHAUSTED", admitted=False))
    assert world.value("hotshoe_adapter_requests_total", adapter="poet", code="RESOURCE_EXHAUSTED") == 1
    assert world.value("vllm:prompt_tokens_total", model_name="tiny", engine="0") == 0


def test_requests_without_an_adapter_are_the_base_alone(world: World) -> None:
    world.metrics.request_finished(_finished())
    assert world.value("hotshoe_adapter_requests_total", adapter="_base", code="OK") == 1


def test_ten_thousand_adapters_make_no_more_series_than_the_cap(world: World) -> None:
    for number in range(10_000):
        world.metrics.request_finished(_finished(f"adapter-{number}"))
    families = {family.name: family for family in text_string_to_metric_families(world.scrape())}
    for name, series in (("hotshoe_adapter_requests", 1), ("hotshoe_adapter_tokens", 2)):
        labels = {sample.labels["adapter"] for sample in families[name].samples}
        assert len(labels) == MAX_ADAPTER_LABELS + 1
        assert len(families[name].samples) == series * len(labels)
    others = 10_000 - MAX_ADAPTER_LABELS
    assert world.value("hotshoe_adapter_requests_total", adapter=OTHER_ADAPTERS, code="OK") == others


def test_lora_requests_info_is_one_series_of_who_is_resident_now(world: World) -> None:
    for names in (["poet", "judge"], ["cook"], []):
        world.residents = [Resident(name) for name in names] + [Resident("asleep", tier="host")]
        world.waiting = ["next"]
        family = next(f for f in text_string_to_metric_families(world.scrape()) if f.name == "vllm:lora_requests_info")
        assert len(family.samples) == 1
        assert family.samples[0].labels == {
            "max_lora": "8",
            "running_lora_adapters": ",".join(sorted(names)),
            "waiting_lora_adapters": "next",
        }


def test_residents_are_told_by_tier_and_those_evicted_vanish(world: World) -> None:
    world.residents = [Resident("poet", pinned=True), Resident("cook"), Resident("judge", kind="IA3", tier="host")]
    loaded = {"model_name": "tiny", "engine": "0", "adapter_name": "poet", "level": "gpu", "pinned": "true"}
    assert world.value("vllm:lora_adapter_loaded", **loaded) == 1
    assert world.value("hotshoe_adapters_resident", tier="device", peft_type="LORA") == 2
    assert world.value("hotshoe_adapters_resident", tier="host", peft_type="IA3") == 1
    assert world.value("hotshoe_adapter_bytes", tier="device") == 200
    world.residents = []
    assert world.value("vllm:lora_adapter_loaded", **loaded) is None
    assert world.value("hotshoe_adapter_bytes", tier="device") == 0


def test_more_residents_than_labels_share_one(world: World) -> None:
    world.residents = [Resident(f"adapter-{number:04}") for number in range(MAX_ADAPTER_LABELS + 50)]
    others = {"model_name": "tiny", "engine": "0", "adapter_name": OTHER_ADAPTERS, "level": "gpu", "pinned": "false"}
    assert world.value("vllm:lora_adapter_loaded", **others) == 50


def test_copies_are_counted_by_what_they_do_and_the_kind_of_remote(world: World) -> None:
    world.metrics.copied("pull", "oci", "ok", 1024, 0.5)
    world.metrics.copied("pull", "oci", "RemoteUnavailable", 24, 2.0)
    world.metrics.copied("push", "s3", "ok", 0, 0.1)
    assert world.value("hotshoe_remote_copies_total", op="pull", remote="oci", result="ok") == 1
    assert world.value("hotshoe_remote_copies_total", op="pull", remote="oci", result="RemoteUnavailable") == 1
    assert world.value("hotshoe_remote_bytes_total", op="pull", remote="oci") == 1048
    assert world.value("hotshoe_remote_bytes_total", op="push", remote="s3") == 0
    assert world.value("hotshoe_remote_copy_seconds_sum", op="pull", remote="oci") == 2.5


def test_registry_operations_are_counted_by_method_and_code(world: World) -> None:
    world.metrics.rpc_handled(Rpc(), "NOT_FOUND", 0.001)
    world.metrics.rpc_handled(Rpc(service="hotshoe.v1.GenerationService", name="Generate"), "OK", 0.001)
    assert world.value("hotshoe_registry_operations_total", op="GetAdapter", code="NOT_FOUND") == 1
    assert world.value("hotshoe_registry_operations_total", op="Generate", code="OK") is None


def test_the_old_name_of_inter_token_latency_is_exported_on_request_only() -> None:
    legacy = LEGACY_METRICS[0].name
    assert f"{legacy}_count" not in World().scrape()
    world = World(metrics=Metrics(legacy_names=True))
    world.metrics.tokens_generated(1, 0.02)
    assert world.value(f"{legacy}_count", model_name="tiny", engine="0") == 1
