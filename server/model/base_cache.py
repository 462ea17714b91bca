"""Quantized bases on disk, each a directory named by its base's digest, so that the second start is quick."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import rfc8785

_FORMAT = "nf4-v1"  # changes when the same base would be stored otherwise
_CHUNK_BYTES = 1 << 22
_TEMPORARY = ".tmp-"
_YOUNG_SECONDS = 60.0


class BaseCache:
    """A directory of quantized bases and the digests of the files that they came from. Safe for several processes; one
    that is read-only has what it has.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def base_digest(self, root: Path, files: Iterable[Path]) -> str:
        """ "sha256:<hex>" of the RFC 8785 JSON of sorted [[path, size, sha256], …], paths relative to `root`."""
        entries = sorted(
            (path.relative_to(root).as_posix(), path.stat().st_size, self.file_digest(path)) for path in files
        )
        return f"sha256:{hashlib.sha256(rfc8785.dumps([list(entry) for entry in entries])).hexdigest()}"

    def file_digest(self, path: Path) -> str:
        """The sha256 of a file, remembered for as long as its size, modification time and inode stay the same."""
        status = path.stat()
        key, state = str(path.resolve()), [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._known_digests()
        if key in known and known[key][:3] == state:
            return str(known[key][3])
        digest = _sha256(path)
        self._remember(key, [*state, digest])
        return digest

    def find(self, digest: str, form: str = _FORMAT) -> Path | None:
        """The directory of a base that was quantized before, or of what else was kept by a digest; or None."""
        directory = self._directory(digest, form)
        return directory if directory.is_dir() else None

    def add(self, digest: str, write: Callable[[Path], None], form: str = _FORMAT) -> Path:
        """Keeps what `write` puts into the directory that it is given, all of it or nothing, and returns where."""
        self._remove_abandoned()
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.root))
        lock = os.open(temporary, os.O_RDONLY)  # held as long as this process lives and writes
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            write(temporary)
            temporary.chmod(0o755)  # mkdtemp's 0o700 is for secrets
            for path in temporary.iterdir():
                _fsync(path)
            _fsync(temporary)
            self._rename(temporary, self._directory(digest, form))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(lock)
        return self._directory(digest, form)

    def _remove_abandoned(self) -> None:
        """What processes left that were killed while they wrote: gigabytes, of large bases."""
        for path in self.root.glob(f"{_TEMPORARY}*"):
            with suppress(OSError):  # it is locked, or gone by now
                if time.time() - path.stat().st_mtime < _YOUNG_SECONDS:  # its writer may not have locked it yet
                    continue
                lock = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path)
                finally:
                    os.close(lock)

    def _rename(self, temporary: Path, directory: Path) -> None:
        try:
            os.rename(temporary, directory)
        except OSError:
            if not directory.is_dir():  # else another process was first, with the same bytes
                raise
        _fsync(self.root)

    def _directory(self, digest: str, form: str) -> Path:
        return self.root / f"{digest.removeprefix('sha256:')}-{form}"

    @property
    def _memory(self) -> Path:
        return self.root / "digests.json"

    def _known_digests(self) -> dict[str, list[int | str]]:
        try:
            known = json.loads(self._memory.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _remember(self, key: str, entry: list[int | str]) -> None:
        known = {**self._known_digests(), key: entry}
        with suppress(OSError):  # it costs the next start some time, and no more
            with tempfile.NamedTemporaryFile("w", dir=self.root, delete=False, encoding="utf-8") as file:
                json.dump(known, file)
            os.replace(file.name, self._memory)


def _sha256(path: Path) -> str:
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
