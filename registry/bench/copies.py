"""How long copies to and from remotes take, and how much memory: `python -m hotshoe.registry.bench --remote URL`.

Adapters of random weights and several sizes are pushed to a remote and pulled into a store that has none of them. What
they are held against is the least that a verified copy costs: sha256 and fsync of the same bytes.
"""

import contextlib
import hashlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from hotshoe.registry.bench.adapters import bench_base, lora_config, lora_tensors
from hotshoe.registry.manifest import CONFIG_FILE, WEIGHTS_FILE, AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.pull import pull
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote import parse_remote

_HIDDEN = 4096
_RANK = 128
_LAYER_BYTES = 2 * _RANK * _HIDDEN * 4
_MAX_BYTES = 2 << 30
_SAMPLE_SECONDS = 0.002
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Copied:
    """One size at one remote: medians. Ratios are to sha256 and fsync of the same bytes right before and after."""

    remote: str
    size_bytes: int
    push_seconds: float
    push_ratio: float
    pull_seconds: float
    pull_ratio: float
    pull_growth_bytes: int  # of the memory that is the process's own


def copies(directory: Path, remotes: Sequence[str], sizes: Sequence[int], *, rounds: int) -> Iterator[Copied]:
    """Measures each size at each remote, in turns. Stores are made in `directory`; what remotes were sent stays there.

    Raises:
        RemoteError: one cannot be written to or read from.
    """
    for size in sizes:
        found: dict[str, list[Copied]] = {url: [] for url in remotes}
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(dir=directory) as work, _store(Path(work) / "here") as here:
                record = _publish(here, size)
                for url in remotes:
                    found[url].append(_copied(here, record, url, Path(work)))
        for url, several in found.items():
            numbers = [astuple(one)[1:] for one in several]
            yield Copied(url, *map(statistics.median, zip(*numbers, strict=True)))


def _copied(here: Registry, record: AdapterRecord, url: str, work: Path) -> Copied:
    weights = record.files[0]
    with here.read_blob(weights.digest) as file:
        data = file.read()
    name = f"{record.name}/{time.time_ns()}"
    with contextlib.closing(parse_remote(url)) as remote:
        before = _hash_and_sync(data, work)
        push_seconds = _seconds(lambda: push(here, record, remote, name=name, tags=["v1"]))
        between = _hash_and_sync(data, work)
        with _store(work / "there") as there:
            pull_seconds = _seconds(lambda: pull(there, remote, "v1", name=name))
        after = _hash_and_sync(data, work)
    shutil.rmtree(work / "there")
    with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # one that has no memory that it freed
        growth = fresh.submit(_growth_of_pull, url, name, work / "there").result()
    shutil.rmtree(work / "there")
    push_ratio, pull_ratio = 2 * push_seconds / (before + between), 2 * pull_seconds / (between + after)
    return Copied(url, weights.size_bytes, push_seconds, push_ratio, pull_seconds, pull_ratio, growth)


def _growth_of_pull(url: str, name: str, root: Path) -> int:
    """By how many bytes a pull lets the memory that is the process's own grow at most."""
    with contextlib.closing(parse_remote(url)) as remote, _store(root) as there:
        remote.resolve(name, "v1")  # all that it imports and connects to is there
        with _memory() as memory:
            pull(there, remote, "v1", name=name, progress=lambda progress: memory.sample())
    return memory.growth


def _store(root: Path) -> Registry:
    return Registry(root, max_blob_bytes=_MAX_BYTES)


def _publish(store: Registry, size_bytes: int) -> AdapterRecord:
    """An adapter of about that size: a LORA of as many layers as that takes."""
    layers = max(1, size_bytes // _LAYER_BYTES)
    tensors = lora_tensors(np.random.default_rng(time.time_ns()).random, layers, _RANK, _HIDDEN)
    files = store.add_files({WEIGHTS_FILE: save(tensors), CONFIG_FILE: lora_config(_RANK)})
    base = bench_base(layers, _HIDDEN)
    return store.publish(name="bench", tags=[], files=files, annotations={}, base=base)[0]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _hash_and_sync(data: bytes, directory: Path) -> float:
    """Seconds of what a verified copy costs at least."""

    def write() -> None:
        digest = hashlib.sha256()
        with path.open("wb", buffering=0) as file:
            for start in range(0, len(data), _CHUNK_BYTES):
                chunk = memoryview(data)[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                file.write(chunk)
            os.fsync(file.fileno())

    path = directory / "hashed"
    try:
        return _seconds(write)
    finally:
        path.unlink()


class _Memory:
    """How many bytes it grew by at most; files that are mapped are not the process's own."""

    def __init__(self) -> None:
        self._samples = [_own_bytes()]

    def sample(self) -> None:
        self._samples.append(_own_bytes())

    @property
    def growth(self) -> int:
        return max(self._samples) - self._samples[0]


@contextmanager
def _memory() -> Iterator[_Memory]:
    """Sampled all the while the block lasts, and whenever the block says so: it may be over before the first sample."""
    ended, memory = threading.Event(), _Memory()

    def sample() -> None:
        while not ended.wait(_SAMPLE_SECONDS):
            memory.sample()

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()


def _own_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
