"""How far transfers of files are, as their caller is told."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far a transfer is; the bytes count all its files."""

    stage: Literal["hash", "upload", "download", "copy"]  # copy: between the server and a remote
    file_name: str
    completed_bytes: int
    total_bytes: int
    new_bytes: int = 0  # copy: those of `completed_bytes` that were not there before


Progress = Callable[[TransferProgress], None]


def ignore_progress(_: TransferProgress) -> None:
    """For callers who do not ask."""


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
        """A file is done: the next one counts behind it."""
        self.at(file_name, size_bytes)
        self._earlier_bytes += size_bytes
