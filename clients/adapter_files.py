"""An adapter's directory as PEFT or AdapterHub saves it: what is published of it. Knows nothing of gRPC."""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotshoe.clients.errors import InvalidAdapterDirectory
from hotshoe.clients.progress import Progress, ProgressCounter, ignore_progress
from hotshoe.protos.v1.chunks import CHUNK_BYTES

LARGE_BYTES = 8 << 20  # of weights that are sent while they are hashed
_KEPT_BYTES = 32 << 20
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
HUB_WEIGHTS, HUB_INTERFACE = "adapter.safetensors", "adapter_interface.json"  # of AdapterHub's `adapters` package
HUB_HEAD = "head_config.json"
CARD = "README.md"
_HUB_PICKLE = "pytorch_adapter.bin"


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """One file to publish; `digest` is "sha256:<hex>" of its bytes."""

    path: Path
    digest: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        return self.path.name

    def chunks(self, offset: int) -> Iterator[tuple[int, bytes]]:
        """As `file_chunks`."""
        return file_chunks(self.path, offset)


@functools.cache
def expect_megabytes() -> None:
    """Has the C library keep the memory of chunks that come and go, for all of the process's life.

    glibc gives back what is free beyond twice the largest piece that it was ever given back itself; each chunk
    would be taken from the system anew, and cleared. The piece is zeros that nobody touches, and so no memory.
    """
    bytes(_KEPT_BYTES // 2)


def file_chunks(path: Path, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(offset, bytes) of at most CHUNK_BYTES each, from `offset` on."""
    with path.open("rb") as stream:
        stream.seek(offset)
        while data := stream.read(CHUNK_BYTES):
            yield offset, data
            offset += len(data)


def scan_directory(directory: str | os.PathLike[str], progress: Progress = ignore_progress) -> list[AdapterFile]:
    """The files of a PEFT or AdapterHub directory that make an adapter, hashed. Raises InvalidAdapterDirectory."""
    paths = find_files(directory)
    counter = hash_counter(paths, progress)
    return [hash_file(path, counter) for path in paths]


def find_files(directory: str | os.PathLike[str]) -> list[Path]:
    """The files of a PEFT or AdapterHub directory that make an adapter, its weights first.

    Raises InvalidAdapterDirectory.
    """
    root = Path(directory)
    if not root.is_dir():
        problem = "a file; expected a directory" if root.exists() else "no such directory"
        raise InvalidAdapterDirectory(f"{root}: {problem}")
    names = _hub_files(root) if _is_of_hub(root) else (WEIGHTS, CONFIG)
    for name in (CONFIG, names[0]):
        if not (root / name).is_file():
            raise InvalidAdapterDirectory(f"{root / name}: missing{_hint(root, name)}")
    return [root / name for name in (*names, CARD) if (root / name).is_file()]


def hash_counter(paths: Sequence[Path], progress: Progress) -> ProgressCounter:
    """Counts what is hashed of files."""
    return ProgressCounter("hash", sum(path.stat().st_size for path in paths), progress)


def _is_of_hub(root: Path) -> bool:
    return not (root / WEIGHTS).exists() and any((root / name).exists() for name in (HUB_WEIGHTS, _HUB_PICKLE))


def _hub_files(root: Path) -> tuple[str, ...]:
    """Those of AdapterHub's package. Its head would be left out without a word, so there must be none."""
    if (root / HUB_HEAD).exists():
        raise InvalidAdapterDirectory(
            f"{root / HUB_HEAD}: a head beside the adapter is not served; if it is the model's own, leave it out by "
            "save_adapter(…, with_head=False)"
        )
    return HUB_WEIGHTS, CONFIG, HUB_INTERFACE


def _hint(root: Path, name: str) -> str:
    if name == WEIGHTS and (root / "adapter_model.bin").exists():
        return "; adapter_model.bin is a pickle, which can run code and is never read: save it as safetensors"
    if name == HUB_WEIGHTS:
        return f"; {_HUB_PICKLE} is a pickle and is never read: save_adapter(…, use_safetensors=True) writes the other"
    return "; PEFT's save_pretrained writes adapter_config.json and adapter_model.safetensors"


def hash_file(path: Path, counter: ProgressCounter) -> AdapterFile:
    """One of them, hashed."""
    sha256 = hashlib.sha256()
    size_bytes = 0
    chunk = bytearray(CHUNK_BYTES)
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(chunk):
            sha256.update(memoryview(chunk)[:count])
            size_bytes += count
            counter.at(path.name, size_bytes)
    counter.finish(path.name, size_bytes)
    return AdapterFile(path=path, digest=f"sha256:{sha256.hexdigest()}", size_bytes=size_bytes)
