"""Tensors of floats, as their file has them, read together in long pieces; on several threads where that is wanted.

One after another, each would be a read and a check by itself, and what Python does between two would find the
processor's caches full of numbers.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.validation import Pause, TensorEntry, TensorFile, go_on, require_finite

PIECE_BYTES = 1 << 20  # that are read and checked at once, so that they are still in the cache
_THREAD_PIECES = 8  # that pay for another thread
_LINE_BYTES = 64

Bits = NDArray[np.unsignedinteger[Any]]
_BITS: Mapping[str, np.dtype[np.unsignedinteger[Any]]] = {
    "F16": np.dtype(np.uint16),
    "BF16": np.dtype(np.uint16),
    "F32": np.dtype(np.uint32),
}
STORED = frozenset(_BITS)  # dtypes that are read so


class _Run:
    """Tensors of one dtype, which follow each other in the file without a gap."""

    def __init__(self, entries: Sequence[TensorEntry]) -> None:
        self.entries = entries
        self.bits = _BITS[entries[0].dtype]
        *self.starts, self.num_elements = accumulate((entry.num_elements for entry in entries), initial=0)

    def parts(self, start: int, bits: Bits) -> Iterator[tuple[TensorEntry, Bits]]:
        """Which of its tensors have a part in bits, whose first is the run's number `start`, and which."""
        first = bisect_right(self.starts, start) - 1
        for entry, begin in zip(self.entries[first:], self.starts[first:], strict=True):
            if begin >= start + bits.size:
                return
            part = bits[max(begin - start, 0) : begin - start + entry.num_elements]
            if part.size:
                yield entry, part


@dataclass(frozen=True, slots=True)
class _Piece:
    """Values that are read at once."""

    run: _Run
    start: int  # its first value in the run
    bits: Bits  # where they go

    @property
    def offset(self) -> int:
        return self.run.entries[0].offset + self.start * self.bits.itemsize

    def read(self, file: TensorFile, scales: Mapping[TensorEntry, float]) -> None:
        """Raises InvalidAdapter, naming the tensor, for a value that is not finite."""
        file.read_into(self.bits.data.cast("B"), self.offset)
        try:
            require_finite(self.run.entries[0], self.bits)
        except InvalidAdapter:  # in one of them
            for entry, part in self.run.parts(self.start, self.bits):
                require_finite(entry, part)
        if self.bits.dtype == np.uint32:
            for entry, part in self.run.parts(self.start, self.bits):
                if (scale := scales[entry]) != 1:
                    values = part.view(np.float32)
                    values *= np.float32(scale)


def read_stored(
    file: TensorFile, scales: Mapping[TensorEntry, float], *, pause: Pause, threads: int
) -> Mapping[TensorEntry, Bits]:
    """The values of tensors of `STORED` dtypes, in memory that they share: bits of 16, and of 32 times their scales.

    Args:
        threads: which read, this one among them; it calls `pause` between pieces, and the others do not.

    Raises:
        InvalidAdapter: a value is not finite, or the file was cut off.
    """
    room = np.empty(sum(entry.size_bytes + _LINE_BYTES for entry in scales), np.uint8)
    found: dict[TensorEntry, Bits] = {}
    pieces: list[_Piece] = []
    for run in _runs(scales):
        size = run.num_elements * run.bits.itemsize
        bits, room = room[:size].view(run.bits), room[size + -size % _LINE_BYTES :]
        length = PIECE_BYTES // bits.itemsize
        pieces += [_Piece(run, start, bits[start : start + length]) for start in range(0, bits.size, length)]
        for entry, start in zip(run.entries, run.starts, strict=True):
            found[entry] = bits[start : start + entry.num_elements].reshape(entry.shape)
    _read_all(file, pieces, scales, pause, threads)
    return found


def _runs(entries: Collection[TensorEntry]) -> Iterator[_Run]:
    """Those of one dtype, as long as each begins where the one before ends."""
    run: list[TensorEntry] = []
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.size_bytes)):
        if run and (entry.dtype != run[-1].dtype or entry.offset != run[-1].offset + run[-1].size_bytes):
            yield _Run(run)
            run = []
        run.append(entry)
    if run:
        yield _Run(run)


def _read_all(
    file: TensorFile, pieces: Sequence[_Piece], scales: Mapping[TensorEntry, float], pause: Pause, threads: int
) -> None:
    """Raises for the first piece that is wrong, whichever thread comes upon it."""
    left = iter(pieces)  # a thread takes the next, so that all before one that is wrong have been taken, too
    wrong: list[tuple[int, InvalidAdapter]] = []

    def read(pause: Pause) -> None:
        for piece in left:
            if wrong:
                return
            pause()
            try:
                piece.read(file, scales)
            except InvalidAdapter as error:
                wrong.append((piece.offset, error))

    threads = min(threads, 1 + len(pieces) // _THREAD_PIECES)
    with ThreadPoolExecutor(threads) as pool:
        others = [pool.submit(read, go_on) for _ in range(threads - 1)]
        try:
            read(pause)
        finally:
            for _ in left:  # whatever it was that ended this one: the others end, too
                pass
        for other in others:
            other.result()
    if wrong:
        raise min(wrong, key=lambda found: found[0])[1]
