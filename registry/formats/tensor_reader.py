"""What a plan reads its tensors with, from a file whose header has been checked."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hotshoe.registry.formats.stored_matrix import StoredMatrix
from hotshoe.registry.stored_runs import Bits, read_stored
from hotshoe.registry.validation import ANY_INTEGER, Pause, TensorEntry, TensorFile

if TYPE_CHECKING:
    from torch import Tensor


class TensorReader:
    """Reads each tensor of a file once; a `Reader`.

    Attributes:
        unread: names of those that are left.
    """

    def __init__(self, file: TensorFile, pause: Pause, *, threads: int = 1) -> None:
        """`pause` is called between tensors; those that are read ahead are read by so many threads."""
        self.unread = set(file.entries)
        self._file = file
        self._pause = pause
        self._threads = threads
        self._ahead: dict[str, Bits] = {}

    def __call__(self, entry: TensorEntry, *, scale: float = 1.0) -> "Tensor":
        import torch

        self._begin(entry)
        if entry.is_integer:  # in bounds, as its plan has checked
            return torch.from_numpy(self._file.read_integers(entry, below=ANY_INTEGER))
        return torch.from_numpy(self._file.read(entry, scale=scale))

    def read_ahead(self, entries: Iterable[TensorEntry]) -> None:
        stored = [entry for entry in entries if entry.dtype in ("F16", "BF16")]
        self._file.set_aside(stored)
        self._ahead |= read_stored(self._file, stored, pause=self._pause, threads=self._threads)

    def matrix(self, entry: TensorEntry, *, scale: float = 1.0) -> "Tensor | StoredMatrix":
        import torch

        if entry.name not in self._ahead:
            return self(entry, scale=scale)
        self._begin(entry)
        dtype = torch.float16 if entry.dtype == "F16" else torch.bfloat16
        return StoredMatrix(torch.from_numpy(self._ahead.pop(entry.name)).view(dtype), scale)

    def _begin(self, entry: TensorEntry) -> None:
        self._pause()
        self.unread.remove(entry.name)
