"""tags.log: one JSON line for every publication, move of a tag, attachment and collection.

For audit, for rollback, and for what index.json does not have yet when the index is lost. A line says how many `more`
of its commit follow it: of a commit that a crash tore, nothing has happened.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import BinaryIO, NamedTuple

from hotshoe.registry.manifest import canonical_json
from hotshoe.registry.store.index_rows import Fingerprint, ReferrerRow
from hotshoe.registry.store.layout import Layout

_TAIL_BYTES = 64 << 10
_CLOCK_SECONDS = 3600.0  # by which clocks may have gone back: entries are in the order in which they were made
_REFERRER_KEYS = ("referrer", "subject", "type", "size")  # of an attachment, in the order of ReferrerRow


class Move(NamedTuple):
    """`tag` of `name` went from digest `old` to `new`; None is nowhere.

    Without a tag: `new` was published, or `old` was collected.
    """

    name: str
    tag: str | None
    old: str | None
    new: str | None


class LoggedMove(NamedTuple):
    """A move as the log has it; `time` is in ISO 8601."""

    id: int
    time: str
    move: Move


class TagLog:
    """The log of one store; appended to under `StoreLocks.committing`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def last_id(self) -> int:
        """Id of the last line of the last whole commit; 0 if there is none."""
        return self.last_line()[0]

    def last_line(self) -> tuple[int, str]:
        """The last line of the last whole commit, and its id; (0, "") if there is none."""
        with suppress(FileNotFoundError), self._open(os.O_RDONLY) as file:
            end = _end_of_commits(file)
            return end.id, end.line.decode()
        return 0, ""

    def stamp(self) -> Fingerprint | None:
        """What its file is like, which is another once something was appended; None if there is no file."""
        try:
            status = os.stat(self._layout.tag_log)
        except FileNotFoundError:
            return None
        return Fingerprint(status.st_ino, status.st_size, status.st_mtime_ns)

    def append(self, lines: Sequence[tuple[int, str]]) -> None:
        """Adds those of `lines` that the log lacks, and syncs all. A commit that a crash tore is cut off first."""
        if not lines:
            return
        with self._open(os.O_RDWR | os.O_CREAT) as file:
            last = _end_of_commits(file)
            file.truncate(last.position)
            file.seek(last.position)
            file.write("".join(line for move_id, line in lines if move_id > last.id).encode())
            file.flush()
            self._layout.sync_file(file.fileno())
        if not last.id:  # the file may be new
            self._layout.sync_directory(self._layout.root)

    def replay(self, *, name: str = "") -> list[LoggedMove]:
        """Every move that can be read, in order; or those of one name."""
        wanted = json.dumps({"name": name}, separators=(",", ":"))[1:-1].encode() if name else b""
        moves = []
        with suppress(FileNotFoundError), self._open(os.O_RDONLY) as file:
            for line in _whole_commits(file):
                if wanted not in line:
                    continue
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    move = Move(entry["name"], entry["tag"], entry["old"], entry["new"])
                    moves.append(LoggedMove(int(entry["id"]), entry["time"], move))
        return moves

    def events(self, *, after: int) -> list[Move | ReferrerRow]:
        """What happened after the entry of that id, in order; what cannot be read is left out."""
        return self.events_from(0, after=after)[0]

    def events_from(self, position: int, *, after: int = 0) -> tuple[list[Move | ReferrerRow], int]:
        """As `events`, of the commits that begin at that byte of the file; and the byte at which the next one will."""
        events: list[Move | ReferrerRow] = []
        with suppress(FileNotFoundError), self._open(os.O_RDONLY) as file:
            for line in _whole_commits(file, position):
                position += len(line)
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    if entry["id"] <= after:
                        continue
                    if "referrer" in entry:
                        events.append(ReferrerRow(*(entry[key] for key in _REFERRER_KEYS)))
                    else:
                        events.append(Move(entry["name"], entry["tag"], entry["old"], entry["new"]))
        return events, position

    def digests_since(self, seconds: float) -> set[str]:
        """What was published, and what tags have left or come to, since a time in seconds since the epoch."""
        digests: set[str | None] = set()
        with suppress(FileNotFoundError), self._open(os.O_RDONLY) as file:
            for line in reversed(file.read().splitlines()):
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    made = datetime.fromisoformat(entry["time"]).timestamp()
                    if made < seconds - _CLOCK_SECONDS:
                        break
                    if made >= seconds:
                        digests |= {entry["old"], entry["new"]}
        return {digest for digest in digests if digest is not None}

    def _open(self, flags: int) -> BinaryIO:
        fd = os.open(self._layout.tag_log, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        return open(fd, "r+b" if flags & os.O_RDWR else "rb")


class _End(NamedTuple):
    """Where whole commits end in a log, and the last line before."""

    id: int
    line: bytes
    position: int


def log_line(event_id: int, event: Move | ReferrerRow, *, more: int = 0) -> str:
    """The line of a move, or of an attachment, made now; `more` lines of the same commit come after it."""
    entry = {"id": event_id, "time": datetime.now(UTC).isoformat(timespec="milliseconds")}
    entry |= event._asdict() if isinstance(event, Move) else dict(zip(_REFERRER_KEYS, event, strict=True))
    entry |= {"more": more} if more else {}
    return canonical_json(entry).decode() + "\n"


def _whole_commits(file: BinaryIO, position: int = 0) -> Iterator[bytes]:
    """The lines of the commits that no crash tore, from a byte at which one begins."""
    left = _end_of_commits(file).position - position
    file.seek(position)
    for line in file:
        left -= len(line)
        if left < 0:
            return
        yield line


def _end_of_commits(file: BinaryIO) -> _End:
    """Reads as much of the file's end as its last whole commit takes, and what is torn or cannot be read after it."""
    size, tail_bytes = file.seek(0, os.SEEK_END), _TAIL_BYTES
    while True:
        start = max(0, size - tail_bytes)
        file.seek(start)
        tail = file.read(size - start)
        begins = whole = tail.rfind(b"\n") + 1
        for line in reversed(tail[:whole].splitlines(keepends=True)):
            begins -= len(line)
            with suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line)
                if not entry.get("more"):
                    return _End(int(entry["id"]), line, start + whole)
                whole = begins
        if not start:
            return _End(0, b"", whole)
        tail_bytes *= 4
