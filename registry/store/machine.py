"""One machine at a time: SQLite's write-ahead log is shared memory, so on a directory that two machines share it would
let each overwrite what the other has acknowledged.
"""

import fcntl
import os
import platform
import random
import time
import uuid
from contextlib import suppress
from pathlib import Path

from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.store.reserve import is_full

_TRIES = 60
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class MachineLock:
    """Held by every process that has a store open, and by those of one machine alone, where the file system tells its
    locks to others, as NFS does; where it does not, nothing here can know.

    Raises:
        StoreUnavailable: a process of another machine has the store open.
        OSError: the disk refused.
    """

    def __init__(self, root: Path) -> None:
        self._fd: int | None = None
        try:
            fd = os.open(root / ".machine", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if is_full(error):  # there must be a way to collect what fills it
                return
            raise
        try:
            _take(fd, machine())
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def release(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def machine() -> str:
    """This machine since it was started, and its name."""
    try:
        booted = _BOOT_ID.read_text().strip()
    except OSError:
        booted = f"{uuid.getnode():x}"
    return f"{booted} {platform.node()}"


def _take(fd: int, me: str) -> None:
    holder = ""
    for _ in range(_TRIES):
        fcntl.flock(fd, fcntl.LOCK_SH)
        holder = os.pread(fd, 4096, 0).decode(errors="replace")
        if holder.partition(" ")[0] == me.partition(" ")[0]:
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not holder:  # who has it could not write down who it is
                return
            fcntl.flock(fd, fcntl.LOCK_UN)  # or two that begin would wait for each other
            time.sleep(random.uniform(0.01, 0.05))
            continue
        with suppress(OSError):
            os.ftruncate(fd, 0)
            os.pwrite(fd, me.encode(), 0)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return
    name = holder.partition(" ")[2]
    raise StoreUnavailable(
        f"the machine {name!r} has it open; a registry's directory is for the processes of one machine, and others "
        "may read it where it is mounted read-only"
    )
