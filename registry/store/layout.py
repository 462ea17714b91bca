"""The OCI image layout on disk: its directories, and files replaced so that a crash leaves the old or the new one."""

import json
import logging
import os
import shutil
import sqlite3
import stat
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from hotshoe.registry.errors import StoreReadOnly, StoreUnavailable

_OCI_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'
_MAX_INDEX_BYTES = 256 << 20
_WRITTEN_IN_PLACE = (".db", ".db-wal", ".db-shm", "tags.log", "leases.log", ".gate", ".gc", ".lock", ".machine")

logger = logging.getLogger(__name__)


@contextmanager
def disk(action: str) -> Iterator[None]:
    """Turns what the disk or SQLite refuses into StoreUnavailable, without a path in its message."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        logger.warning("%s: %s", action, error)
        raise StoreUnavailable(f"{action}: {reason}") from error


class Layout:
    """The directories of a store.

    root/ oci-layout index.json blobs/sha256/<hex>                 what any OCI tool reads
          tags.log leases.log                                      what became of tags, and who uses what
          views/<hex of a manifest>/<file>                         hard links, for those who want a directory
          .tmp/ .uploads/ .quarantine/ .trash/ .gate .gc .lock     ours; a layout may hold unknown files
          .machine .db

    Attributes:
        read_only: why the store is only read; "" if it may be written to. Known once it is open.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs" / "sha256"
        self.uploads = root / ".uploads"
        self.quarantine = root / ".quarantine"
        self.trash = root / ".trash"
        self.views = root / "views"
        self.database = root / ".db"
        self.tag_log = root / "tags.log"
        self.lease_log = root / "leases.log"
        self.read_only = ""
        self._staging = root / ".tmp"
        self._index_json = root / "index.json"
        self._failure: str | None = None

    def create(self) -> None:
        """Makes what is missing. A store that is there and cannot be written stays as it is: `read_only` says why.

        Raises:
            StoreUnavailable: the directory holds something else, or cannot be read.
            OSError: the disk refused.
        """
        if self.root.exists() and not self.root.is_dir():
            raise StoreUnavailable("expected a directory")
        self._check_readable()
        if (self.root / "oci-layout").exists():
            self._refuse_foreign_directory()
            self.read_only = self._obstacle()
            if self.read_only:
                return
        self.root.mkdir(parents=True, exist_ok=True)
        self._refuse_foreign_directory()
        for directory in self._directories[1:]:
            directory.mkdir(parents=True, exist_ok=True)
        if not (self.root / "oci-layout").exists():
            self.replace_file("oci-layout", _OCI_LAYOUT)
            self.sync_directory(self.blobs.parent)

    @property
    def _directories(self) -> tuple[Path, ...]:
        return (self.root, self.blobs, self.uploads, self.quarantine, self.trash, self.views, self._staging)

    def _check_readable(self) -> None:
        for directory in (self.root, self.blobs):
            if directory.exists() and not os.access(directory, os.R_OK | os.X_OK):
                raise StoreUnavailable(f"{directory} is not readable by this user")

    def _obstacle(self) -> str:
        """Why a store that is there cannot be written; "" if it can."""
        if os.statvfs(self.root).f_flag & os.ST_RDONLY:
            return "its file system is mounted read-only"
        files = (self.root / name for name in _WRITTEN_IN_PLACE)
        for path in (*self._directories, *files):
            needed = os.W_OK | os.X_OK if path.is_dir() else os.R_OK | os.W_OK
            if path.exists() and not os.access(path, needed):
                return f"this user may not write to {path}"
        return ""

    def check_writable(self) -> None:
        """Raises StoreReadOnly if the store is only read."""
        if self.read_only:
            raise StoreReadOnly(
                f"registry {self.root} is read-only: {self.read_only}; publish, tag and collect where it can be "
                "written, or copy it (cp -a) and serve the copy"
            )

    def _refuse_foreign_directory(self) -> None:
        for entry in (*os.scandir(self.root), *entries(self.blobs.parent)):
            if entry.is_symlink():
                raise StoreUnavailable(f"{os.path.relpath(entry.path, self.root)!r} is a symbolic link; remove it")
        marker = self.root / "oci-layout"
        if marker.exists():
            if _layout_version(marker.read_bytes()) != "1.0.0":
                raise StoreUnavailable("oci-layout does not say imageLayoutVersion 1.0.0")
            return
        # A crash while a store is made may leave our own entries without the marker.
        ours = {"blobs", "views", ".tmp", ".uploads", ".quarantine", ".trash", ".gate", ".gc", ".lock"}
        strangers = sorted(entry.name for entry in os.scandir(self.root) if entry.name not in ours)
        if strangers:
            raise StoreUnavailable(f"the directory is not empty and no OCI image layout (it holds {strangers[0]!r})")

    def place(self) -> int:
        """A number above 0 that stays what it is where the store stays, and is another where it was copied to."""
        inodes = [path.stat().st_ino for path in (self.root, self.blobs, self.database)]
        return zlib.crc32(repr(inodes).encode()) >> 1 or 1

    def stage(self) -> Path:
        """A path for a new file or directory on the store's file system; only under `StoreLocks.publishing`."""
        return self._staging / uuid.uuid4().hex

    def clear_stage(self) -> None:
        """Removes what crashed publishers left; only under `StoreLocks.collecting`."""
        for entry in os.scandir(self._staging):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)

    def replace_file(self, name: str, data: bytes) -> None:
        """Replaces a file of the root: staged, synced, renamed, directory synced. Durable once it returns."""
        staged = self.stage_file(data)
        try:
            self.put_in_place(staged, name)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise

    def stage_file(self, data: bytes) -> Path:
        """A synced file that is to be put in its place; only under `StoreLocks.publishing`."""
        staged = self.stage()
        try:
            write_synced(staged, data)
        except BaseException:
            staged.unlink(missing_ok=True)
            raise
        return staged

    def put_in_place(self, staged: Path, name: str) -> None:
        """Replaces a file of the root by a staged one, durably."""
        os.replace(staged, self.root / name)
        self.sync_directory(self.root)

    def read_index(self) -> bytes | None:
        """index.json's bytes, or None if there is none."""
        try:
            fd = os.open(self._index_json, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        with open(fd, "rb") as file:
            return file.read(_MAX_INDEX_BYTES)

    def confirm_index(self, data: bytes) -> None:
        """Makes sure that index.json is `data`, durably, whoever wrote it."""
        if self.read_index() == data:
            self.sync_directory(self.root)  # another process may have died between its rename and its sync
        else:
            self.replace_file("index.json", data)

    def sync_blobs(self) -> None:
        """Makes every linked blob's name durable."""
        self.sync_directory(self.blobs)

    def sync_directory(self, directory: Path) -> None:
        """fsync of a directory. After one failure this process writes no more: a second try would falsely succeed."""
        self.check_sound()
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            self.fail(f"a directory could not be synced ({error.strerror})")
            raise
        finally:
            os.close(fd)

    def sync_file(self, fd: int) -> None:
        """fsync of a file that stays if it fails; such a failure counts as `sync_directory`'s does."""
        try:
            os.fsync(fd)
        except OSError as error:
            self.fail(f"a file could not be synced ({error.strerror})")
            raise

    def fail(self, reason: str) -> None:
        """From now on every write is refused: what is on the disk is known only after a restart."""
        self._failure = reason

    def check_sound(self) -> None:
        """Raises StoreUnavailable if an earlier sync failed."""
        if self._failure is not None:
            raise StoreUnavailable(f"the store takes no writes until the server restarts: {self._failure}")


def entries(directory: Path) -> list[os.DirEntry[str]]:
    """What is in a directory; nothing if it is not there, as in a copy of a store that left out what was empty."""
    try:
        return list(os.scandir(directory))
    except FileNotFoundError:
        return []


def _layout_version(data: bytes) -> object:
    try:
        document = json.loads(data)
    except ValueError:
        return None
    return document.get("imageLayoutVersion") if isinstance(document, dict) else None


def write_synced(path: Path, data: bytes) -> None:
    """Writes a new file and syncs it; the name is not yet durable."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def open_regular(path: Path) -> BinaryIO | None:
    """A regular file, to be read; None where there is none, be it a link, or a FIFO, which would be waited for."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return open(fd, "rb")
    os.close(fd)
    return None
