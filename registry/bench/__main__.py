"""How long a store with many adapters takes: python -m hotshoe.registry.bench [--adapters 10000] [--json]; or, with
--remote URL, copies to and from a remote; or, with --large MB, one large adapter.

The adapters are small, each of its own bytes and name and all tagged. They are written as files, and the index is
rebuilt from those, which is the first thing that is measured.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from io import BufferedWriter
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from hotshoe.registry.bench.adapters import bench_base, lora_config, lora_tensors
from hotshoe.registry.bench.copies import copies
from hotshoe.registry.bench.large import measure_large
from hotshoe.registry.digest import digest_hex, digest_of
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lowering import AdapterSummary
from hotshoe.registry.manifest import CONFIG_FILE, WEIGHTS_FILE, Artifact, FileDescriptor, build_artifact
from hotshoe.registry.registry import Registry
from hotshoe.registry.store.index_json import build_index
from hotshoe.registry.store.index_rows import IndexEntry
from hotshoe.registry.store.layout import Layout

_HIDDEN = 16
_RANK = 4
_CALLS = 200


def base() -> BaseShape:
    """One layer with q_proj."""
    return bench_base(1, _HIDDEN)


def adapter_files(seed: int) -> dict[str, bytes]:
    """A LORA adapter of that base."""
    tensors = lora_tensors(np.random.default_rng(seed).standard_normal, 1, _RANK, _HIDDEN)
    return {WEIGHTS_FILE: save(tensors), CONFIG_FILE: lora_config(_RANK)}


def fill(root: Path, adapters: int) -> None:
    """Writes the files of a store: its blobs and index.json, no index."""
    layout = Layout(root)
    layout.create()
    entries = []
    for seed in range(adapters):
        files = adapter_files(seed)
        artifact = _artifact(files)
        for data in (*files.values(), artifact.card, artifact.config, artifact.manifest):
            path = layout.blobs / digest_hex(digest_of(data))
            if not path.exists():
                path.write_bytes(data)
                path.chmod(0o444)
        entry = IndexEntry(_name(seed), "latest", artifact.content.digest, len(artifact.manifest))
        entries += [entry, entry._replace(tag="v1")]
    (root / "index.json").write_bytes(build_index(entries))


def _artifact(files: dict[str, bytes]) -> Artifact:
    descriptors = [FileDescriptor(name, digest_of(data), len(data)) for name, data in files.items()]
    summary = AdapterSummary("LORA", _RANK, ("q_proj",), "", "F32", 2 * _RANK * _HIDDEN, 2, 0)
    return build_artifact(descriptors, summary=summary, base=base(), base_name="bench", annotations={})


def _name(seed: int) -> str:
    return f"team-{seed % 50}/adapter-{seed}"


def measure(root: Path, adapters: int) -> dict[str, float]:
    """Milliseconds: of what is done once, or the median and the 99th percentile of many calls."""
    results: dict[str, float] = {}

    def once(what: str, call: Callable[[], object]) -> object:
        start = time.perf_counter()
        result = call()
        results[what] = 1e3 * (time.perf_counter() - start)
        return result

    def often(what: str, call: Callable[[int], object], *, calls: int = _CALLS) -> None:
        times = []
        for number in range(calls):
            start = time.perf_counter()
            call(number)
            times.append(1e3 * (time.perf_counter() - start))
        results[what] = statistics.median(times)
        results[f"{what}, p99"] = statistics.quantiles(times, n=100)[98]

    registry = once("rebuild", lambda: Registry(root))
    assert isinstance(registry, Registry)
    once("close", registry.close)
    registry = once("open", lambda: Registry(root))
    assert isinstance(registry, Registry)
    store: Registry = registry
    once("first list of 100", lambda: store.list())
    often("list 100", lambda number: store.list())
    often("list 100 by part of the name", lambda number: store.list(name_contains=f"team-{number % 50}/"))
    once("list all", lambda: _list_all(store))
    often("resolve a tag", lambda number: store.resolve(f"{_name(number * 7919 % adapters)}:v1"))
    digests = [store.resolve(_name(seed)).digest for seed in range(2)]
    _publish(store, _name(0), seed=1)
    _move(store, digests[0], digests[1])
    with (root / ".tmp" / "bench").open("wb") as file:
        often("write 4 KiB and sync, for comparison", lambda number: _write_synced(file))
    # Long enough for several exports of index.json to fall into it.
    often("move a tag", lambda number: _move(store, digests[(number + 1) % 2], digests[number % 2]), calls=3000)
    often("publish", lambda number: _publish(store, "new", seed=adapters + number), calls=50)
    once("look for garbage", lambda: store.collect_garbage(grace_seconds=0, dry_run=True))
    once("collect garbage", lambda: store.collect_garbage(grace_seconds=0))
    once("close after writes", store.close)
    return results


def _write_synced(file: BufferedWriter) -> None:
    file.seek(0)
    file.write(bytes(4096))
    file.flush()
    os.fsync(file.fileno())


def _list_all(store: Registry) -> None:
    page, token = store.list(page_size=1000)
    while token:
        page, token = store.list(page_size=1000, page_token=token)


def _move(store: Registry, digest: str, expected: str) -> None:
    store.update_tag(_name(0), "latest", digest, expected)


def _publish(store: Registry, name: str, *, seed: int) -> None:
    files = store.add_files(adapter_files(seed))
    store.publish(name=name, tags=["latest"], files=files, annotations={}, base=base())


def main() -> None:
    """Measures, and prints a table or JSON."""
    parser = argparse.ArgumentParser("python -m hotshoe.registry.bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--adapters", type=int, default=10_000)
    parser.add_argument("--large", type=int, metavar="MB", help="measure one large adapter instead")
    parser.add_argument("--remote", action="append", metavar="URL", help="measure copies there and back instead")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 400], help="of the adapters copied")
    parser.add_argument("--rounds", type=int, default=3, help="of copies; their medians are told")
    parser.add_argument("--directory", type=Path, help="where the store is made, and removed")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    sys.setswitchinterval(0.0005)  # as the server has it
    if arguments.remote:
        return _print_copies(arguments)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        if arguments.large:
            size = {"megabytes": arguments.large}
            results = measure_large(Path(directory), arguments.large, rounds=9)
        else:
            size = {"adapters": arguments.adapters}
            root = Path(directory) / "store"
            fill(root, arguments.adapters)
            results = measure(root, arguments.adapters)
    if arguments.json:
        print(json.dumps({**size, **{what: round(ms, 3) for what, ms in results.items()}}))
        return
    print(", ".join(f"{number} {word}" for word, number in size.items()) + ", milliseconds")
    for what, milliseconds in results.items():
        print(f"{milliseconds:12.2f}  {what}")


def _print_copies(arguments: argparse.Namespace) -> None:
    sizes = [size * 1_000_000 for size in arguments.megabytes]
    if not arguments.json:
        print(
            "ratios are to sha256 and fsync of the same bytes\n      MB    push s       ÷    pull s       ÷   grew MiB"
        )
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        for one in copies(Path(directory), arguments.remote, sizes, rounds=arguments.rounds):
            if arguments.json:
                print(json.dumps(asdict(one)), flush=True)
                continue
            print(
                f"{one.size_bytes / 1e6:8.0f}{one.push_seconds:10.3f}{one.push_ratio:8.2f}{one.pull_seconds:10.3f}"
                f"{one.pull_ratio:8.2f}{one.pull_growth_bytes / 2**20:11.1f}  {one.remote}",
                flush=True,
            )


if __name__ == "__main__":
    main()
