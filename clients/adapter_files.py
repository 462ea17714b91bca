"""An adapter's directory as PEFT or AdapterHub saves it: what is published of it, how a pull writes it. Knows nothing
of gRPC.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from hotshoe.clients.errors import InvalidAdapterDirectory
from hotshoe.protos.v1.chunks import CHUNK_BYTES
from hotshoe.registry.stream_hash import Beside, StreamHash, begin_writing

_BEGIN_BYTES = 1 << 20
LARGE_BYTES = 8 << 20  # of weights that are sent while they are hashed
_KEPT_BYTES = 32 << 20
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
HUB_WEIGHTS, HUB_INTERFACE = "adapter.safetensors", "adapter_interface.json"  # of AdapterHub's `adapters` package
HUB_HEAD = "head_config.json"
CARD = "README.md"
_HUB_PICKLE = "pytorch_adapter.bin"
PLAIN_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a transfer is; `completed_bytes` and `total_bytes` count all its files."""

    stage: Literal["hash", "upload", "download", "copy"]  # copy: between the server and a remote
    file_name: str
    completed_bytes: int
    total_bytes: int


Progress = Callable[[TransferProgress], None]


def ignore_progress(_: TransferProgress) -> None:
    """For callers who do not ask."""


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


class ProgressCounter:
    """Counts the bytes of several files and tells `progress` after each step."""

    def __init__(self, stage: Literal["hash", "upload", "download"], total_bytes: int, progress: Progress) -> None:
        self._stage: Literal["hash", "upload", "download"] = stage
        self._total_bytes = total_bytes
        self._progress = progress
        self._earlier_bytes = 0

    def at(self, file_name: str, completed_bytes: int) -> None:
        """`completed_bytes` of this file are done, beside all files finished before."""
        done = self._earlier_bytes + completed_bytes
        self._progress(TransferProgress(self._stage, file_name, done, self._total_bytes))

    def finish(self, file_name: str, size_bytes: int) -> None:
        self.at(file_name, size_bytes)
        self._earlier_bytes += size_bytes


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
        raise InvalidAdapterDirectory(f"{root}: no such directory")
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


class RemoteFile(Protocol):
    """What a pull needs to know of a file."""

    @property
    def file_name(self) -> str: ...
    @property
    def digest(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...


class PartialDownload:
    """A file being pulled into `directory`: its bytes lie in a .partial file until their digest has been verified.

    What an earlier pull left is taken up again: `offset` says where to go on.
    """

    def __init__(self, directory: Path, file: RemoteFile) -> None:
        # Both come from the server, and become paths here.
        if not PLAIN_FILE_NAME.fullmatch(file.file_name):
            raise ValueError(f"{file.file_name!r} is not a plain file name: refused")
        if not DIGEST.fullmatch(file.digest):
            raise ValueError(f"{file.digest!r} is not sha256:<64 hex digits>: refused")
        self._target = directory / file.file_name
        self._partial = directory / f".{file.file_name}.{file.digest.removeprefix('sha256:')[:16]}.partial"
        self._digest = file.digest
        self._size_bytes = file.size_bytes
        self._sha256 = StreamHash()
        self.offset = 0
        self._writing = Beside()
        self._written = self._begun = 0  # of these bytes, those on their way to the disk

    def already_here(self) -> bool:
        """Whether the target exists with just these bytes."""
        if not self._target.is_file() or self._target.stat().st_size != self._size_bytes:
            return False
        with self._target.open("rb") as stream:
            return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}" == self._digest

    def __enter__(self) -> "PartialDownload":
        if self._size_bytes >= LARGE_BYTES:
            expect_megabytes()
        self._stream = self._partial.open("a+b")
        self._stream.seek(0)
        while data := self._stream.read(CHUNK_BYTES):
            self._sha256.update(data)
            self.offset += len(data)
        self._written = self._begun = self.offset
        if self.offset > self._size_bytes:
            self._restart()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        try:
            self._writing.wait()
        except OSError:
            if exc_type is None:
                raise
        finally:
            self._stream.close()
        if self.offset == 0:  # nothing came, or it was wrong
            self._partial.unlink(missing_ok=True)

    def write(self, data: bytes | memoryview) -> None:
        """Takes the next bytes. What writing the last ones raised is raised here, or by `commit`."""
        self._sha256.update(data)
        self._writing.do(self._append, data)
        self.offset += len(data)

    def _append(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self._written += len(data)
        if self._written - self._begun >= _BEGIN_BYTES:
            self._stream.flush()
            begin_writing(self._stream.fileno(), self._begun, self._written)
            self._begun = self._written

    def commit(self) -> bool:
        """Moves the file to its place if its bytes are right; else drops them and says False."""
        self._writing.wait()
        if self.offset != self._size_bytes or f"sha256:{self._sha256.hexdigest()}" != self._digest:
            self._restart()
            return False
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._partial.replace(self._target)
        return True

    def _restart(self) -> None:
        self._writing.wait()
        self._stream.truncate(0)
        self._sha256 = StreamHash()
        self.offset = self._written = self._begun = 0
