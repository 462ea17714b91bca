"""What a plan reads its tensors with, from a file whose header has been checked."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hotshoe.registry.formats.stored_matrix import StoredMatrix
from hotshoe.registry.stored_runs import STORED, Bits, read_stored
from hotshoe.registry.validation import ANY_INTEGER, Pause, TensorEntry, TensorFile

if TYPE_CHECKING:
    from torch import Tensor


class TensorReader:
    """Reads each tensor of a file once; a `Reader`.

    Attributes:
        unread: names of those that are left.
    """

    def __init__(self, file: TensorFile, pause: Pause, *, threads: int = 1) -> None:
        """`pause` is called between tensors; `threads` read those that are read together."""
        self.unread = set(file.entries)
        self._file = file
        self._pause = pause
        self._threads = threads

    def __call__(self, entry: TensorEntry, *, scale: float = 1.0) -> "Tensor":
        import torch

        self._begin(entry)
        if entry.is_integer:  # in bounds, as its plan has checked
            return torch.from_numpy(self._file.read_integers(entry, below=ANY_INTEGER))
        return torch.from_numpy(self._file.read(entry, scale=scale))

    def matrices(self, scales: Mapping[TensorEntry, float]) -> "dict[TensorEntry, Tensor | StoredMatrix]":
        stored = {entry: scale for entry, scale in scales.items() if entry.dtype in STORED}
        self._file.set_aside(stored)
        bits = read_stored(self._file, stored, pause=self._pause, threads=self._threads)
        self.unread -= {entry.name for entry in stored}
        return {
            entry: _matrix(entry.dtype, bits[entry], scale) if entry in stored else self(entry, scale=scale)
            for entry, scale in scales.items()
        }

    def _begin(self, entry: TensorEntry) -> None:
        self._pause()
        self.unread.remove(entry.name)


def _matrix(dtype: str, bits: Bits, scale: float) -> "Tensor | StoredMatrix":
    import torch

    values = torch.from_numpy(bits)
    if dtype == "F32":
        return values.view(torch.float32)
    return StoredMatrix(values.view(torch.float16 if dtype == "F16" else torch.bfloat16), scale)
