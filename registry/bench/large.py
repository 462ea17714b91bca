"""How long a large adapter takes in this process, by the least: `python -m hotshoe.registry.bench --large MB`.

The least is sha256 of the bytes, a copy of them on the same disk, and its sync; it is measured beside each. Lowering is
held against reading the file, which the system has in memory, into memory of one's own; of files in float32 and in
16 bits.
"""

import hashlib
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from hotshoe.registry.bench.adapters import bench_base, lora_config, lora_tensors
from hotshoe.registry.digest import digest_hex
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.manifest import CONFIG_FILE, WEIGHTS_FILE, FileDescriptor
from hotshoe.registry.registry import Registry

_HIDDEN = 4096
_RANK = 64
_LAYER_VALUES = 2 * _RANK * _HIDDEN
_NARROW = ("bfloat16", "float16")
_CHUNK_BYTES = 1 << 20
_FREED_BYTES = 500 << 20


def measure_large(directory: Path, megabytes: int, *, rounds: int) -> dict[str, float]:
    """Medians, in milliseconds, and their ratios to the least; the store is made in `directory`."""
    layers = _layers_of(megabytes, 4)
    (directory / CONFIG_FILE).write_bytes(lora_config(_RANK))
    store = Registry(directory / "store")
    times: dict[str, list[float]] = {"least": [], "publish": [], "read back, hashed again": [], "read": [], "lower": []}
    try:
        for number in range(rounds):
            weights, out = directory / WEIGHTS_FILE, directory / "copy"
            _write_weights(weights, layers, "float32", seed=number)
            times["least"].append(_milliseconds(out, partial(_copy, weights, out)))
            times["publish"].append(_milliseconds(out, partial(_publish, store, directory, layers)))
            digest = next(one.digest for one in store.resolve("large").files if one.file_name == WEIGHTS_FILE)
            os.utime(directory / "store" / "blobs" / "sha256" / digest_hex(digest))  # or its hash is remembered
            times["read back, hashed again"].append(_milliseconds(out, partial(_read, store, digest, out)))
            times["read"].append(_milliseconds(out, partial(np.fromfile, weights, np.uint8)))
            times["lower"].append(_milliseconds(out, partial(_lower, directory, _Unread(layers))))
            for dtype in _NARROW:
                narrow_layers = _layers_of(megabytes, 2)
                _write_weights(weights, narrow_layers, dtype, seed=number)
                read, lower = (times.setdefault(f"{what} {dtype}", []) for what in ("read", "lower"))
                read.append(_milliseconds(out, partial(np.fromfile, weights, np.uint8)))
                lower.append(_milliseconds(out, partial(_lower, directory, _Unread(narrow_layers))))
    finally:
        store.close()
    medians = {what: statistics.median(several) for what, several in times.items()}
    ratios = {f"{what}, by the least": medians[what] / medians["least"] for what in list(medians)[1:3]}
    for dtype in ("", *(f" {dtype}" for dtype in _NARROW)):
        ratios[f"lower{dtype}, by the read"] = medians[f"lower{dtype}"] / medians[f"read{dtype}"]
    return medians | ratios


def _layers_of(megabytes: int, value_bytes: int) -> int:
    return max(1, round(megabytes * 1e6 / (_LAYER_VALUES * value_bytes)))


def _publish(store: Registry, directory: Path, layers: int) -> None:
    files = []
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        path = directory / name
        with store.begin_upload(FileDescriptor(name, "", path.stat().st_size)) as upload:
            with path.open("rb", buffering=0) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    upload.write(upload.received_bytes, chunk)
            upload.name(upload.received_digest)
            files.append(upload.finish())
    store.publish(name="large", tags=["latest"], files=files, annotations={}, base=bench_base(layers, _HIDDEN))


def _read(store: Registry, digest: str, out: Path) -> None:
    with store.read_blob(digest) as source, out.open("wb", buffering=0) as target:
        while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)
        os.fsync(target.fileno())
    out.unlink()


class _Unread:
    """A base none of whose weights a LORA takes to be lowered."""

    def __init__(self, layers: int) -> None:
        self.shape = bench_base(layers, _HIDDEN)


def _lower(directory: Path, base: _Unread) -> None:
    files = {name: directory / name for name in (WEIGHTS_FILE, CONFIG_FILE)}
    lower_adapter(files, base, threads=2)  # type: ignore[arg-type]  # as a server does while nothing decodes


def _copy(path: Path, out: Path) -> None:
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as source, out.open("wb", buffering=0) as target:
        while chunk := source.read(_CHUNK_BYTES):
            sha256.update(chunk)
            target.write(chunk)
        os.fsync(target.fileno())
    out.unlink()


def _milliseconds(scratch: Path, act: Callable[[], object]) -> float:
    # What a virtual machine has freed it gives back, and waits for when it wants it again: that is no part of this.
    with scratch.open("wb", buffering=0) as file:
        for _ in range(_FREED_BYTES // _CHUNK_BYTES):
            file.write(bytes(_CHUNK_BYTES))
    scratch.unlink()
    start = time.perf_counter()
    act()
    return 1e3 * (time.perf_counter() - start)


def _write_weights(path: Path, layers: int, dtype: str, *, seed: int) -> None:
    import torch
    from safetensors.torch import save_file

    tensors = lora_tensors(np.random.default_rng(seed).standard_normal, layers, _RANK, _HIDDEN)
    wanted = getattr(torch, dtype)
    save_file({name: torch.from_numpy(values).to(wanted) for name, values in tensors.items()}, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())  # that is not what is measured
