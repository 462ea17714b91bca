"""Quarantine: what was found damaged, for as long as there may be nothing better.

    <hex of a digest>.<8 hex>    what lay in the place of a blob, and was not it
    index[-wal|-shm].<8 hex>     a database that SQLite found malformed

Damaged bytes are better than none: a file of which some numbers are wrong can be mended by hand, or is sound after all
and was read wrongly. So the collector takes a file only once the grace has passed since it came here, and then only if
the blob is here, sound, or nothing names it any more.
"""

import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hotshoe.registry.digest import digest_hex, digest_of_stream, is_digest
from hotshoe.registry.store.layout import Layout, entries, open_regular


class DamagedFile(NamedTuple):
    """One file in quarantine, there since `since`, in seconds since the epoch; `digest` is "" if it was no blob."""

    name: str
    digest: str
    size_bytes: int
    since: float


class Quarantine:
    """The quarantine of one store."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._directory = layout.quarantine

    def take(self, path: Path, digest: str = "") -> None:
        """Moves a file here: what lay in a blob's place, or else a part of the index. Raises OSError, StoreReadOnly."""
        self._layout.check_writable()
        name = digest_hex(digest) if digest else f"index{path.name.removeprefix(self._layout.database.name)}"
        with suppress(OSError):
            os.utime(path, follow_symlinks=False)  # the grace begins now
        os.rename(path, self._directory / f"{name}.{uuid.uuid4().hex[:8]}")

    def files(self, digest: str = "") -> list[DamagedFile]:
        """What is here, of a blob or in all, what came first first."""
        found = []
        for entry in entries(self._directory):
            stem, dot, _ = entry.name.partition(".")
            known = f"sha256:{stem}" if is_digest(f"sha256:{stem}") else ""
            is_ours = dot and (known or stem in ("index", "index-wal", "index-shm"))
            if is_ours and digest in ("", known):
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:  # discarded since it was listed
                    continue
                found.append(DamagedFile(entry.name, known, status.st_size, status.st_mtime))
        return sorted(found, key=lambda file: file.since)

    def path(self, file: DamagedFile) -> Path:
        """Where it lies."""
        return self._directory / file.name

    def is_sound(self, file: DamagedFile) -> bool:
        """Whether its bytes are those of its digest after all."""
        opened = open_regular(self.path(file))
        if opened is None:
            return False
        with opened:
            return digest_of_stream(opened) == file.digest

    def discard(self, file: DamagedFile) -> None:
        """Removes it for ever. Raises OSError."""
        path = self.path(file)
        if path.is_dir() and not path.is_symlink():  # somebody had put one in a blob's place
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
