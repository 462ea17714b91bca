"""Where a layout's files are read from: a directory, or a tar archive of one. Nothing is believed, nothing unpacked."""

import hashlib
import os
import re
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from hotshoe.clients.errors import InvalidLayout

MAX_MEMBERS = 100_000
MAX_HEADER_BYTES = 1 << 20
CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class Source(Protocol):
    """The files of a layout, by the names that the specification gives them."""

    def open(self, name: str) -> BinaryIO:
        """Raises InvalidLayout: there is no such regular file."""
        ...


class DirectorySource:
    """A layout in a directory. Symbolic links in it are refused: they could point anywhere."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, name: str) -> BinaryIO:
        path = self._root
        for part in name.split("/"):
            path = path / part
            if path.is_symlink():
                raise InvalidLayout(f"{name}: a symbolic link, which is refused")
        try:
            # Not through a link that was put there meanwhile, and not waiting for a pipe's other end.
            file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
        except OSError as error:
            raise InvalidLayout(f"{name}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise InvalidLayout(f"{name}: not a regular file")
        return file


class ArchiveSource:
    """A layout in a tar archive, not compressed. One with a member that is no file or directory, or is not below the
    archive's root, is refused whole."""

    def __init__(self, file: BinaryIO) -> None:
        """Reads the members' headers. Raises InvalidLayout."""
        self._members: dict[str, tarfile.TarInfo] = {}
        try:
            small: Any = _SmallReads(file)  # tarfile reads a long name or extended header whole, however long it is
            self._archive = tarfile.open(fileobj=small, mode="r:")
            for number, member in enumerate(self._archive):
                if number >= MAX_MEMBERS:
                    raise InvalidLayout(f"more than {MAX_MEMBERS} members")
                self._add(member)
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidLayout(f"not a tar archive of a layout, not compressed ({error})") from None

    def _add(self, member: tarfile.TarInfo) -> None:
        name = member.name.removeprefix("./")
        shown = ascii(member.name[:80])
        if "\0" in name or name.startswith("/") or ".." in name.split("/"):
            raise InvalidLayout(f"{shown}: not a path below the archive's root")
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE) or member.issparse():
            raise InvalidLayout(f"{shown}: a link, a device or something else that is neither file nor directory")
        if member.isdir():
            return
        if name in self._members:
            raise InvalidLayout(f"{shown}: there twice")
        self._members[name] = member

    def open(self, name: str) -> BinaryIO:
        member = self._members.get(name)
        file: Any = None if member is None else self._archive.extractfile(member)
        if file is None:
            raise InvalidLayout(f"{name}: not in the archive")
        return file  # type: ignore[no-any-return]


class _SmallReads:
    """A file of which nobody reads more than a header's worth at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._file.read(size)


@contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """A layout's directory or archive. Raises InvalidLayout or OSError."""
    if path.is_dir():
        yield DirectorySource(path)
        return
    if path.exists() and not path.is_file():  # opening a pipe would wait for its other end
        raise InvalidLayout("neither a directory nor a file")
    with path.open("rb") as file:
        yield ArchiveSource(file)


def read_small(source: Source, name: str, limit: int) -> bytes:
    """A whole file of at most `limit` bytes. Raises InvalidLayout."""
    with source.open(name) as file:
        data = _read(file, name, limit + 1)
    if len(data) > limit:
        raise InvalidLayout(f"{name}: expected at most {limit} bytes")
    return data


def read_blob(source: Source, digest: str, size: int) -> bytes:
    """A blob, verified. Raises InvalidLayout."""
    data = read_small(source, blob_name(digest), size)
    if len(data) != size or f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise InvalidLayout(f"blob {digest}: has other bytes than its digest and size say")
    return data


def copy_blob(source: Source, digest: str, size: int, target: Path | None) -> None:
    """Verifies a blob of any size, and writes what was verified to `target`, if there is one. Raises InvalidLayout."""
    sha256, left = hashlib.sha256(), size
    name = blob_name(digest)
    with source.open(name) as file, open(target or os.devnull, "wb") as output:
        while data := _read(file, name, min(CHUNK_BYTES, left + 1)):
            sha256.update(data)
            output.write(data)
            left -= len(data)
            if left < 0:
                break
    if left or f"sha256:{sha256.hexdigest()}" != digest:
        raise InvalidLayout(f"blob {digest}: has other bytes than its digest and size say")


def blob_name(digest: str) -> str:
    """Where a layout has a blob. Raises InvalidLayout: it is no sha256 digest, and would be a path from outside."""
    if not _DIGEST.fullmatch(digest):
        raise InvalidLayout(f"digest {ascii(digest[:80])}: expected sha256: and 64 lower-case hex digits")
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def _read(file: BinaryIO, name: str, size: int) -> bytes:
    """As much as there is, up to `size`: tarfile finds out only now that an archive was cut."""
    data = bytearray()
    try:
        while len(data) < size and (piece := file.read(min(CHUNK_BYTES, size - len(data)))):
            data += piece
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise InvalidLayout(f"{name}: {error}") from None
    return bytes(data)
