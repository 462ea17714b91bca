"""Every Prometheus name and label of the server, once.

The `vllm:` block has vLLM's names, labels and buckets, so that its dashboards and routers work unchanged.
"""

import enum
from dataclasses import dataclass

_TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_LATENCY = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
_TOKENS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_LOADS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BATCH = (1, 2, 4, 8, 16, 32, 64)
_RPC = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)


class Kind(enum.Enum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SCRAPED = "scraped"  # a gauge asked for when somebody scrapes


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: its name as scraped, what it says, its labels."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


MODEL = ("model_name", "engine")
RPC_LABELS = ("grpc_type", "grpc_service", "grpc_method")

METRICS: tuple[MetricSpec, ...] = (
    MetricSpec("vllm:num_requests_running", Kind.GAUGE, "Requests in the batch.", MODEL),
    MetricSpec("vllm:num_requests_waiting", Kind.GAUGE, "Requests waiting for admission to the batch.", MODEL),
    MetricSpec("vllm:kv_cache_usage_perc", Kind.GAUGE, "Share of the KV cache in use, 0 to 1.", MODEL),
    MetricSpec("vllm:prompt_tokens_total", Kind.COUNTER, "Prompt tokens of admitted requests.", MODEL),
    MetricSpec("vllm:generation_tokens_total", Kind.COUNTER, "Tokens generated.", MODEL),
    MetricSpec("vllm:request_success_total", Kind.COUNTER, "Requests ended, by reason.", (*MODEL, "finished_reason")),
    MetricSpec("vllm:num_preemptions_total", Kind.COUNTER, "Requests put back for lack of KV pages.", MODEL),
    MetricSpec("vllm:prefix_cache_queries_total", Kind.COUNTER, "Prompt tokens looked up in the prefix cache.", MODEL),
    MetricSpec("vllm:prefix_cache_hits_total", Kind.COUNTER, "Prompt tokens found in the prefix cache.", MODEL),
    MetricSpec("vllm:time_to_first_token_seconds", Kind.HISTOGRAM, "Arrival to first token.", MODEL, _TTFT),
    MetricSpec("vllm:inter_token_latency_seconds", Kind.HISTOGRAM, "From token to token.", MODEL, _PER_TOKEN),
    MetricSpec("vllm:request_time_per_output_token_seconds", Kind.HISTOGRAM, "Mean time per token.", MODEL, _PER_TOKEN),
    MetricSpec("vllm:e2e_request_latency_seconds", Kind.HISTOGRAM, "Arrival to end.", MODEL, _LATENCY),
    MetricSpec("vllm:request_queue_time_seconds", Kind.HISTOGRAM, "Time in the queue.", MODEL, _LATENCY),
    MetricSpec("vllm:request_prefill_time_seconds", Kind.HISTOGRAM, "Queue's end to first token.", MODEL, _LATENCY),
    MetricSpec("vllm:request_decode_time_seconds", Kind.HISTOGRAM, "First token to last.", MODEL, _LATENCY),
    MetricSpec("vllm:request_prompt_tokens", Kind.HISTOGRAM, "Prompt tokens of a request.", MODEL, _TOKENS),
    MetricSpec("vllm:request_generation_tokens", Kind.HISTOGRAM, "Tokens generated for a request.", MODEL, _TOKENS),
    MetricSpec("vllm:iteration_tokens_total", Kind.HISTOGRAM, "Rows of a step.", MODEL, _STEP_TOKENS),
    MetricSpec(
        "vllm:cache_config_info", Kind.GAUGE, "Shape of the KV cache.", (*MODEL, "block_size", "num_gpu_blocks")
    ),
    MetricSpec(
        "vllm:lora_requests_info",
        Kind.SCRAPED,
        "Adapters on the device and adapters that requests wait for; the value is the time.",
        ("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    ),
    MetricSpec(
        "vllm:lora_adapter_loaded",
        Kind.SCRAPED,
        "1 for each adapter in memory; level is gpu (the device) or cpu (host memory).",
        (*MODEL, "adapter_name", "level", "pinned"),
    ),
    MetricSpec("hotshoe_adapter_requests_total", Kind.COUNTER, "Requests ended, by adapter.", ("adapter", "code")),
    MetricSpec("hotshoe_adapter_tokens_total", Kind.COUNTER, "Tokens, by adapter.", ("adapter", "kind")),
    MetricSpec("hotshoe_adapter_loads_total", Kind.COUNTER, "Adapter loads.", ("source", "result")),
    MetricSpec("hotshoe_adapter_load_seconds", Kind.HISTOGRAM, "Stages of an adapter's load.", ("stage",), _LOADS),
    MetricSpec("hotshoe_adapter_evictions_total", Kind.COUNTER, "Adapters evicted.", ("tier", "reason")),
    MetricSpec("hotshoe_adapters_resident", Kind.SCRAPED, "Adapters in memory.", ("tier", "peft_type")),
    MetricSpec("hotshoe_adapter_bytes", Kind.SCRAPED, "Bytes of adapters in memory.", ("tier",)),
    MetricSpec("hotshoe_adapter_cache_requests_total", Kind.COUNTER, "Adapters asked for at admission.", ("result",)),
    MetricSpec("hotshoe_batch_size", Kind.HISTOGRAM, "Sequences in a step.", (), _BATCH),
    MetricSpec("hotshoe_batch_distinct_adapters", Kind.HISTOGRAM, "Distinct adapters in a step.", (), (0, *_BATCH)),
    MetricSpec("hotshoe_registry_blob_bytes", Kind.SCRAPED, "Bytes of blobs in the registry."),
    MetricSpec(
        "hotshoe_registry_damaged_blobs_total",
        Kind.COUNTER,
        "Blobs found damaged or lost: healed, or not.",
        ("result",),
    ),
    MetricSpec("hotshoe_registry_operations_total", Kind.COUNTER, "Registry operations.", ("op", "code")),
    MetricSpec("hotshoe_build_info", Kind.GAUGE, "What runs here.", ("version", "base_model", "quantization")),
    MetricSpec("grpc_server_started_total", Kind.COUNTER, "RPCs started.", RPC_LABELS),
    MetricSpec("grpc_server_handled_total", Kind.COUNTER, "RPCs ended.", (*RPC_LABELS, "grpc_code")),
    MetricSpec("grpc_server_handling_seconds", Kind.HISTOGRAM, "Duration of RPCs.", RPC_LABELS, _RPC),
)
LEGACY_METRICS = (
    MetricSpec("vllm:time_per_output_token_seconds", Kind.HISTOGRAM, "From token to token.", MODEL, _PER_TOKEN),
)
