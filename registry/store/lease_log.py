"""leases.log: one JSON line for every lease that was taken, extended or ended, so that leases outlive the index.

    {"digest":…,"expires":…,"holder":…}    taken or extended until then, in seconds since the epoch
    {"digest":…,"holder":…}                ended
    {"holder":…}                           all of the holder's ended

The index is right where they differ, and the log is written anew from it: at every open, and when it has become long.
Lines are added in the index's own write transaction, so in the order in which the index had them.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from hotshoe.registry.digest import is_digest
from hotshoe.registry.manifest import canonical_json
from hotshoe.registry.store.index_rows import Lease
from hotshoe.registry.store.layout import Layout

MAX_BYTES = 1 << 20  # above which the log is written anew, if it holds four times what it must


class LeaseChange(NamedTuple):
    """A line of the log."""

    holder: str
    digest: str | None
    expires: float | None


class LeaseLog:
    """The log of one store; written to by who holds the index's write transaction."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._path = layout.lease_log
        self._max_bytes = MAX_BYTES

    def append(self, changes: Sequence[LeaseChange], *, durable: bool) -> bool:
        """Adds lines, and with `durable` syncs them. False: the log must be replaced instead, it is gone or too long.

        Raises:
            OSError: the disk refused; nothing was added that counts.
        """
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            size = os.fstat(fd).st_size
            if not size or size > self._max_bytes:
                return False
            torn = os.pread(fd, 1, size - 1) != b"\n"  # by a crash: that line is not ours to complete
            _write(fd, b"\n" * torn + b"".join(map(_line, changes)), size)
            if durable:
                self._layout.sync_file(fd)
        finally:
            os.close(fd)
        return True

    def replace(self, leases: Iterable[Lease]) -> None:
        """Makes the log tell of these leases and no others, durably. Raises OSError."""
        data = b"\n" + b"".join(_line(LeaseChange(*lease)) for lease in leases)
        staged = self._path.with_name(self._path.name + ".new")  # and not .tmp/, which others may be clearing
        fd = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        try:
            _write(fd, data, 0)
            os.fsync(fd)
        except OSError:
            staged.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        self._layout.put_in_place(staged, self._path.name)
        self._max_bytes = max(MAX_BYTES, 4 * len(data))

    def leases(self, *, after: float) -> dict[tuple[str, str], Lease]:
        """What the log says is leased longer than until then, by holder and digest; what cannot be read is left out."""
        leases: dict[tuple[str, str], Lease] = {}
        with suppress(FileNotFoundError):
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            with open(fd, "rb") as file:
                for line in file:
                    with suppress(ValueError, KeyError, TypeError, AttributeError):
                        _apply(leases, json.loads(line))
        return {key: lease for key, lease in leases.items() if after < lease.expires < math.inf}

    def agree(self, leases: Sequence[Lease], *, after: float) -> None:
        """Makes the log tell of these leases longer than until then, unless it does so in few words. Raises OSError."""
        try:
            is_short = os.stat(self._path).st_size <= MAX_BYTES
        except FileNotFoundError:
            is_short = False
        if not is_short or set(self.leases(after=after).values()) != set(leases):
            self.replace(leases)


def _apply(leases: dict[tuple[str, str], Lease], entry: dict[str, object]) -> None:
    holder, digest, expires = entry["holder"], entry.get("digest"), entry.get("expires")
    if not isinstance(holder, str) or not (digest is None or is_digest(str(digest))):
        return
    if isinstance(digest, str) and isinstance(expires, int | float):
        leases[holder, digest] = Lease(holder, digest, float(expires))
    elif expires is None:
        for key in [key for key in leases if key[0] == holder and digest in (None, key[1])]:
            del leases[key]


def _line(change: LeaseChange) -> bytes:
    entry = {key: value for key, value in change._asdict().items() if value is not None}
    return canonical_json(entry) + b"\n"


def _write(fd: int, data: bytes, end: int) -> None:
    """Writes all, or leaves the file as long as it was."""
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]
    except OSError:
        with suppress(OSError):
            os.ftruncate(fd, end)
        raise
