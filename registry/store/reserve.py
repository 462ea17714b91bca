"""Room that is kept aside on the store's disk, so that garbage can be collected when there is no other left."""

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path

_ROOM_BYTES = 256 << 10  # with less than that SQLite cannot open its write-ahead log


class Reserve:
    """One file of blocks that nobody needs; 0 bytes keep nothing aside."""

    def __init__(self, root: Path, size_bytes: int) -> None:
        self._path = root / ".reserve"
        self._size_bytes = size_bytes

    def keep(self) -> None:
        """Takes the room, if it is to be had and not taken."""
        if not self._size_bytes:
            return
        with suppress(OSError):  # the disk is full, or does not know how: then there is none
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, self._size_bytes)
            except OSError:
                os.unlink(self._path)
            finally:
                os.close(fd)

    def give(self) -> bool:
        """Lets others have the room; whether there was any."""
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            return False
        return True


def is_full(error: Exception, root: Path | None = None) -> bool:
    """Whether a disk refused for want of room; of `root`'s disk it is seen, too, where SQLite says less than that."""
    if isinstance(error, sqlite3.Error):
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        is_vague = code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_ERROR)
        return code == sqlite3.SQLITE_FULL or (is_vague and root is not None and _has_no_room(root))
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _has_no_room(root: Path) -> bool:
    disk = os.statvfs(root)
    return disk.f_bavail * disk.f_frsize < _ROOM_BYTES
