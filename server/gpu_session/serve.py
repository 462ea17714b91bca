"""A whole server on the random base: what its clients get of it, over gRPC, by `hotshoe bench`'s own load generator.

Server and load generator are processes of their own, as a user has them; both end with the part's.
"""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from hotshoe.registry.registry import Registry
from hotshoe.server.gpu_session.ours import Row
from hotshoe.server.gpu_session.random_base import write_base
from hotshoe.server.gpu_session.sizes import TARGETS, SessionSizes
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.spec import ModelSpec

_STOP_SECONDS = 10.0
SYSTEM = "hotshoe serve"


def measure(sizes: SessionSizes, device: torch.device, scratch: Path) -> Iterator[Row]:
    """Streams of the base alone and of adapters mixed, then what a cold adapter adds to the first token.

    Args:
        scratch: has the base already, or gets it.
    """
    serve, registry = sizes.serve, scratch / "registry"
    base = scratch / f"base-{sha256(json.dumps(sizes.config).encode()).hexdigest()[:12]}"
    shutil.rmtree(registry, ignore_errors=True)
    started = time.perf_counter()
    write_base(sizes.config, base, device)
    written = time.perf_counter()
    names = publish_adapters(base, registry, sizes.rank, serve.adapters + serve.cold, device)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the device is the server's from here on
    published = time.perf_counter()
    with running_server(base, registry, serve.arguments) as ready:
        address = ready["grpc"]
        yield {
            "system": SYSTEM,
            "what": "ready",
            "backend": ready["backend"],
            "seconds": time.perf_counter() - published,
            "write_seconds": written - started,
            "publish_seconds": (published - written) / len(names),
        }
        for streams in serve.streams:
            for count in (0, serve.adapters):
                yield stream_row(sizes, address, streams, names[:count])
        yield from swap_rows(address, names[serve.adapters :], serve.tries)


def publish_adapters(base: Path, registry: Path, rank: int, count: int, device: torch.device) -> list[str]:
    """Puts random LORA adapters of every linear into a registry; their names."""
    spec = spec_from_config(json.loads((base / "config.json").read_text()))
    shape = spec.base_shape(name=base.name, digest=f"sha256:{'0' * 64}")  # the server hashes the files; we need not
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": TARGETS}
    generator, names = torch.Generator(device).manual_seed(2), [f"random/{number}" for number in range(count)]
    with Registry(registry) as store:
        for name in names:
            files = store.add_files(
                {
                    "adapter_config.json": json.dumps(config).encode(),
                    "adapter_model.safetensors": save(_factors(spec, rank, generator)),
                }
            )
            store.publish(name=name, tags=["latest"], files=files, annotations={}, base=shape)
    return names


def _factors(spec: ModelSpec, rank: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    found = {}
    for _, shape in spec.linears():
        for name, size in (("lora_A", (rank, shape.in_features)), ("lora_B", (shape.out_features, rank))):
            values = torch.empty(size, dtype=torch.bfloat16, device=generator.device)
            found[f"base_model.model.{shape.module}.{name}.weight"] = values.normal_(
                std=0.01, generator=generator
            ).cpu()
    return found


@contextlib.contextmanager
def running_server(base: Path, registry: Path, arguments: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """A server as `hotshoe serve` starts it, for the block, which begins when it is ready; what its ready line says.

    Raises:
        RuntimeError: it ended instead; the part's log says why.
    """
    paths = ("--base", str(base), "--registry", str(registry), "--base-cache", str(registry.with_name("bases")))
    ours = ("--listen", "127.0.0.1:0", "--http", "", "--allow-other-base", "--doctor", "off")
    command = [sys.executable, "-P", "-m", "hotshoe.server", *paths, *ours, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server ended with {process.wait()}")
            yield json.loads(line)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def stream_row(sizes: SessionSizes, address: str, streams: int, adapters: list[str]) -> Row:
    """So many streams at a time, each with the next of the adapters."""
    serve = sizes.serve
    plan = {
        "--concurrency": streams,
        "--adapters": ",".join(adapters) or "base",
        "--prompt-tokens": serve.prompt_tokens,
        "--new-tokens": serve.new_tokens,
        "--rounds": serve.rounds,
        "--warmup": 1,
    }
    report = ask(address, "bench", *(str(word) for pair in plan.items() for word in pair))
    [level], server = report["levels"], report["server"]
    times = {name: level["median"][name] for name in ("ttft_p50", "ttft_p99", "inter_token_p50", "inter_token_p99")}
    return {
        "system": SYSTEM,
        "what": "streams",
        "rows": streams,
        "adapters": len(adapters),
        "tokens_per_second": level["median"]["tokens_per_second"],
        **{f"{name}_ms": None if seconds is None else 1e3 * seconds for name, seconds in times.items()},
        "errors": sum(level["errors"].values()),
        "kv_tokens": server["kv_cache_tokens"],
    }


def swap_rows(address: str, adapters: list[str], tries: int) -> Iterator[Row]:
    """First tokens with adapters that lie on the device, on the host and on disk."""
    report = ask(address, "bench", "swap", "--adapters", ",".join(adapters), "--tries", str(tries))
    for place, seconds in report["seconds"].items():
        if seconds:
            ordered = sorted(seconds)
            middle = ordered[len(ordered) // 2]
            yield {"system": SYSTEM, "what": "swap", "place": place, "ms": 1e3 * middle, "worst_ms": 1e3 * ordered[-1]}


def ask(address: str, *words: str) -> dict[str, Any]:
    """What a verb of `hotshoe` reports as JSON, failed requests in it.

    Raises:
        CalledProcessError: it reports nothing.
    """
    command = [sys.executable, "-P", "-m", "hotshoe.clients.cli", *words, "--server", address, "--json"]
    run = subprocess.run(command, stdout=subprocess.PIPE)
    if not run.stdout.strip():
        raise subprocess.CalledProcessError(run.returncode, command)
    report: dict[str, Any] = json.loads(run.stdout)
    return report
