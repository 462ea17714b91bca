"""How far a copy to or from a remote is, as its caller is told."""

from collections.abc import Callable
from dataclasses import dataclass

from hotshoe.registry.manifest import FileDescriptor


@dataclass(frozen=True, slots=True)
class TransferProgress:
    """How far one blob has come. All of a manifest are named before the first moves; one that is there is whole."""

    blob: FileDescriptor
    completed_bytes: int


# Called by the transfer's thread. What it raises ends the transfer, which can be begun again where it was.
Progress = Callable[[TransferProgress], None]


def ignore_progress(progress: TransferProgress) -> None:
    """For those who do not look."""
