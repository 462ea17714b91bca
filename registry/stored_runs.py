"""Tensors of 16 bits, as their file has them, read together in long pieces; on several threads where that is wanted.

One after another, each would be a read and a check by itself, and what Python does between two would find the
processor's caches full of numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.validation import Pause, TensorEntry, TensorFile, go_on, require_finite

PIECE = 1 << 19  # values that are read and checked at once, so that they are still in the cache
_THREAD_PIECES = 8  # that pay for another thread

Bits = NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class _Piece:
    """Values that are read at once: of tensors of one dtype, which follow each other without a gap."""

    run: Sequence[TensorEntry]
    start: int  # its first value in the run
    bits: Bits  # where they go

    @property
    def offset(self) -> int:
        return self.run[0].offset + self.start * self.bits.itemsize

    def read(self, file: TensorFile) -> None:
        """Raises InvalidAdapter, naming the tensor, for a value that is not finite."""
        file.read_into(self.bits.data.cast("B"), self.offset)
        try:
            require_finite(self.run[0], self.bits)
        except InvalidAdapter:  # in one of them
            for entry, bits in self._parts():
                require_finite(entry, bits)

    def _parts(self) -> Iterator[tuple[TensorEntry, Bits]]:
        start = -self.start
        for entry in self.run:
            end = start + entry.num_elements
            if (bits := self.bits[max(start, 0) : max(end, 0)]).size:
                yield entry, bits
            start = end


def read_stored(file: TensorFile, entries: Sequence[TensorEntry], *, pause: Pause, threads: int) -> Mapping[str, Bits]:
    """The values of tensors of F16 and of BF16, by name, in memory that they share.

    Args:
        threads: which read, this one among them; it calls `pause` between pieces, and the others do not.

    Raises:
        InvalidAdapter: a value is not finite, or the file was cut off.
    """
    room = np.empty(sum(entry.num_elements for entry in entries), np.uint16)
    found: dict[str, Bits] = {}
    pieces: list[_Piece] = []
    for run in _runs(entries):
        size = sum(entry.num_elements for entry in run)
        bits, room = room[:size], room[size:]
        pieces += [_Piece(run, start, bits[start : start + PIECE]) for start in range(0, size, PIECE)]
        for entry in run:
            found[entry.name] = bits[: entry.num_elements].reshape(entry.shape)
            bits = bits[entry.num_elements :]
    _read_all(file, pieces, pause, threads)
    return found


def _runs(entries: Sequence[TensorEntry]) -> Iterator[Sequence[TensorEntry]]:
    """Those of one dtype, as long as each begins where the one before ends."""
    run: list[TensorEntry] = []
    for entry in sorted(entries, key=lambda entry: (entry.offset, entry.size_bytes)):
        if run and (entry.dtype != run[-1].dtype or entry.offset != run[-1].offset + run[-1].size_bytes):
            yield run
            run = []
        run.append(entry)
    if run:
        yield run


def _read_all(file: TensorFile, pieces: Sequence[_Piece], pause: Pause, threads: int) -> None:
    """Raises for the first piece that is wrong, whichever thread comes upon it."""
    left = iter(pieces)  # a thread takes the next, so that all before one that is wrong have been taken, too
    wrong: list[tuple[int, InvalidAdapter]] = []

    def read(pause: Pause) -> None:
        for piece in left:
            if wrong:
                return
            pause()
            try:
                piece.read(file)
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
