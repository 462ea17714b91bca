"""Canonical forms that took the base's weights to compute, kept on disk, so that the next load takes a read.

Named by the adapter, the base and the code that lowers; each file begins with the checksum of the rest, and one that
is damaged is computed anew. The least recently used go when the directory grows beyond its limit.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from hotshoe.registry import formats
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowered import Approximation, LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.stored_matrix import StoredMatrix, wide
from hotshoe.registry.validation import Pause, go_on

_CHECKSUM_BYTES = 32
_CHUNK_BYTES = 1 << 22
_CACHED = frozenset({"kind", "linears", "approximation"})  # of LoweredAdapter's fields


class LoweredCache:
    """A directory of canonical forms. Any thread; safe for several processes."""

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        """`max_bytes` 0 keeps nothing."""
        self._directory = directory
        self._max_bytes = max_bytes

    def find(self, adapter: str, base: str, *, pause: Pause = go_on) -> LoweredAdapter | None:
        """What was kept of an adapter on a base, by its key and the base's digest; None if it is not, or is damaged."""
        path = self._path(adapter, base)
        try:
            payload = _read_checked(path, pause)
            if payload is None:
                path.unlink(missing_ok=True)
                return None
            with suppress(OSError):  # a disk that takes no writes has no need to know
                os.utime(path)  # it was used
            return _decoded(payload)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            return None

    def add(self, adapter: str, base: str, lowered: LoweredAdapter) -> None:
        """Keeps a canonical form, if it has nothing but linears and fits; a disk that refuses costs only time."""
        payload = _encoded(lowered)
        if payload is None or len(payload) + _CHECKSUM_BYTES > self._max_bytes:
            return
        with suppress(OSError):
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._directory, suffix=".tmp", delete=False) as file:
                file.write(hashlib.sha256(payload).digest())
                file.write(payload)
            os.replace(file.name, self._path(adapter, base))
            self._prune()

    def _path(self, adapter: str, base: str) -> Path:
        key = "\n".join((adapter, base, _code_digest()))
        return self._directory / hashlib.sha256(key.encode()).hexdigest()

    def _prune(self) -> None:
        """Removes the least recently used beyond the limit, and what a process that died left half written."""
        total = 0
        for _, size, path in sorted(self._files(), reverse=True):
            total += size
            if total > self._max_bytes:
                path.unlink(missing_ok=True)

    def _files(self) -> Iterator[tuple[int, int, Path]]:
        for path in self._directory.iterdir():
            with suppress(FileNotFoundError):  # another process removed it
                status = path.stat()
                yield status.st_mtime_ns, status.st_size, path


@cache
def _code_digest() -> str:
    """Of the source that lowers: what another version of it made is not taken for its own."""
    digest = hashlib.sha256()
    for directory in formats.__path__:
        for path in sorted(Path(directory).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _read_checked(path: Path, pause: Pause) -> bytes | None:
    """All but the checksum; None if that is wrong."""
    digest, payload = hashlib.sha256(), bytearray()
    with path.open("rb") as file:
        expected = file.read(_CHECKSUM_BYTES)
        while chunk := file.read(_CHUNK_BYTES):
            pause()
            digest.update(chunk)
            payload += chunk
    return bytes(payload) if digest.digest() == expected else None


def _encoded(lowered: LoweredAdapter) -> bytes | None:
    """As safetensors; None if it has parts that are not kept."""
    plain = {field.name: getattr(lowered, field.name) for field in fields(lowered)}
    if any(name not in _CACHED and _is_set(value) for name, value in plain.items()):
        return None
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, float]] = {}
    for linear, part in lowered.linears.items():
        numbers[str(linear)] = {}
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, Tensor | StoredMatrix):
                tensors[f"{linear}.{field.name}"] = wide(value)
            elif isinstance(value, float | int):
                numbers[str(linear)][field.name] = value
            elif value is not None:
                return None
    approximation = lowered.approximation
    about = {
        "kind": lowered.kind,
        "linears": numbers,
        "approximation": None
        if approximation is None
        else {field.name: getattr(approximation, field.name) for field in fields(approximation)},
    }
    return bytes(save(tensors, metadata={"about": json.dumps(about)}))


def _decoded(payload: bytes) -> LoweredAdapter:
    about: Mapping[str, Any] = json.loads(_metadata(payload)["about"])
    parts: dict[str, dict[str, Any]] = {name: dict(numbers) for name, numbers in about["linears"].items()}
    for name, tensor in load(payload).items():
        linear, _, field = name.rpartition(".")
        parts[linear][field] = tensor
    kept = about["approximation"]
    return LoweredAdapter(
        about["kind"],
        {_linear(name): LoweredLinear(**part) for name, part in parts.items()},
        approximation=None if kept is None else Approximation(**kept),
    )


def _metadata(payload: bytes) -> Mapping[str, str]:
    length = int.from_bytes(payload[:8], "little")
    metadata: Mapping[str, str] = json.loads(payload[8 : 8 + length])["__metadata__"]
    return metadata


def _linear(name: str) -> LinearId:
    _, layer, target = name.split(".")
    return LinearId(int(layer), target)


def _is_set(value: object) -> bool:
    return value is not None and (isinstance(value, Tensor) or bool(value))
