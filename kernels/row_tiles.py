"""Which rows of a step take which updates, as small tables: made on the host, read by kernels from device memory.

An update is a number by which the device knows an adapter; a segment's rows take its updates, each with a weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE_ROWS = 16
RowUpdates = tuple[int, int, Sequence[tuple[int, float]]]  # start, end, (update, weight) of these rows


@dataclass(frozen=True, slots=True)
class TileArrays:
    """A tile is up to 16 rows of a segment; it has one entry for each update of theirs."""

    entries: NDArray[np.int32]  # [entries, 3]: first row, rows, update
    weights: NDArray[np.float32]  # [entries]
    row_entries: NDArray[np.int32]  # [rows, 2]: first and end of the entries of the row's tile


@dataclass(frozen=True, slots=True, eq=False)
class RowTiles:
    """`TileArrays` on the device. There may be more entries than `count` says: grids follow the tables'
    length, work follows the count."""

    count: Tensor  # [1] int32: entries
    entries: Tensor  # [entries, 3] int32
    weights: Tensor  # [entries] float32
    row_entries: Tensor  # [rows, 2] int32

    @classmethod
    def of(cls, arrays: TileArrays, device: torch.device) -> "RowTiles":
        """Copies the tables to a device."""
        count = torch.tensor([len(arrays.entries)], dtype=torch.int32)
        tables = (torch.from_numpy(array) for array in (arrays.entries, arrays.weights, arrays.row_entries))
        return cls(*(tensor.to(device) for tensor in (count, *tables)))


def tile_rows(segments: Sequence[RowUpdates], num_rows: int) -> TileArrays:
    """The tables of a step's segments, which are ascending; neighbours that take the same updates share tiles."""
    entries: list[tuple[int, int, int]] = []
    weights: list[float] = []
    row_entries = np.zeros((num_rows, 2), np.int32)
    done = 0
    for start, end, updates in _merged(segments):
        row_entries[done:start] = len(entries)
        for first in range(start, end, TILE_ROWS):
            count = min(TILE_ROWS, end - first)
            row_entries[first : first + count] = len(entries), len(entries) + len(updates)
            entries += [(first, count, update) for update, _ in updates]
            weights += [weight for _, weight in updates]
        done = end
    row_entries[done:] = len(entries)
    table = np.array(entries, np.int32).reshape(len(entries), 3)
    return TileArrays(table, np.array(weights, np.float32), row_entries)


def _merged(segments: Sequence[RowUpdates]) -> list[RowUpdates]:
    """Without those that take nothing; rows that follow each other and take the same as one."""
    merged: list[RowUpdates] = []
    for start, end, updates in segments:
        if not updates:
            continue
        if merged and merged[-1][1] == start and tuple(merged[-1][2]) == tuple(updates):
            merged[-1] = merged[-1][0], end, updates
        else:
            merged.append((start, end, updates))
    return merged
