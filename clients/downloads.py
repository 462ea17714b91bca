"""Files as a pull writes them into a directory, each whole and verified or not there. Knows nothing of gRPC."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from hotshoe.clients.adapter_files import LARGE_BYTES, expect_megabytes
from hotshoe.protos.v1.chunks import CHUNK_BYTES
from hotshoe.registry.stream_hash import Beside, StreamHash, begin_writing

PLAIN_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BEGIN_BYTES = 1 << 20  # on their way to the disk at a time


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

    def is_begun(self) -> bool:
        """Whether an earlier pull left a part of it."""
        return self._partial.exists()

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


def foreign_file(directory: Path, files: Iterable[RemoteFile]) -> str | None:
    """A file of a directory that an earlier pull of these cannot have left: one that is other than theirs.

    Or, where there is nothing of theirs, any.
    """
    present = {path.name for path in directory.iterdir()} if directory.exists() else set()
    begun = False
    for file in files:
        download = PartialDownload(directory, file)
        if file.file_name in present and not download.already_here():
            return file.file_name
        begun = begun or file.file_name in present or download.is_begun()
    return None if begun else min(present, default=None)
