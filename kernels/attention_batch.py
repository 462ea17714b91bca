"""Who attends to what in one step, as tensors: made by the engine, read by the attention kernels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PREFILL_ROWS = 16  # positions of a prompt in one tile of `tile_sequences`


@dataclass(frozen=True, slots=True)
class PrefillSegment:
    """Several consecutive tokens of one sequence: rows start … end−1 of the step.

    `slots` [context] int64 is the kv slot of every position of the sequence up to and including these rows, in
    order, so row start + i attends to slots[: context − (end − start) + i + 1].
    """

    start: int
    end: int
    slots: Tensor


@dataclass(frozen=True, slots=True)
class AttentionBatch:
    """The rows of one step: first the sequences that add one token, then the prefill segments in order.

    Slots 0 … page_tokens−1 are the null page: never written, always zero, what padding points at.
    """

    num_decodes: int
    decode_slots: Tensor  # [num_decodes, max_context] int64, padded with slot 0
    decode_lengths: Tensor  # [num_decodes] int64: context length, the row itself included
    prefills: tuple[PrefillSegment, ...] = ()

    @property
    def num_rows(self) -> int:
        return self.prefills[-1].end if self.prefills else self.num_decodes

    def by_pages(self) -> "PagedBatch":
        """The same, with pages of one token."""
        lists = [*self.decode_slots, *(segment.slots for segment in self.prefills)]
        tables = np.zeros((len(lists), max((len(slots) for slots in lists), default=0)), np.int32)
        for line, slots in enumerate(lists):
            tables[line, : len(slots)] = slots.cpu().numpy()
        rows = [1] * self.num_decodes + [segment.end - segment.start for segment in self.prefills]
        contexts = self.decode_lengths.tolist() + [segment.slots.shape[0] for segment in self.prefills]
        return PagedBatch(1, tables, tuple(rows), tuple(contexts))


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """The same by pages: position p of a sequence has the slot tables[its line, p // page_tokens] · page_tokens +
    p % page_tokens. Lines are sequences in the order of their rows; those of one row come first."""

    page_tokens: int
    tables: NDArray[np.int32]  # [sequences, pages], 0 past a sequence's end: page 0 is the null page
    rows: tuple[int, ...]  # of each sequence in this step
    contexts: tuple[int, ...]  # of each sequence, these rows included

    @property
    def num_decodes(self) -> int:
        return sum(rows == 1 for rows in self.rows)

    @property
    def num_rows(self) -> int:
        return sum(self.rows)

    def by_slots(self) -> AttentionBatch:
        """The same, slot by slot."""
        decodes, longest = self.num_decodes, max(self.contexts[: self.num_decodes], default=0)
        position = np.arange(max(self.contexts, default=0))
        slots = self.tables[:, position // self.page_tokens].astype(np.int64) * self.page_tokens
        slots += position % self.page_tokens
        slots[np.arange(slots.shape[1]) >= np.array(self.contexts)[:, None]] = 0
        prefills, row = [], decodes
        for line in range(decodes, len(self.rows)):
            end = row + self.rows[line]
            prefills.append(PrefillSegment(row, end, torch.from_numpy(slots[line, : self.contexts[line]])))
            row = end
        lengths = torch.tensor(self.contexts[:decodes], dtype=torch.int64)
        return AttentionBatch(decodes, torch.from_numpy(slots[:decodes, :longest]), lengths, tuple(prefills))


def tile_sequences(rows: Sequence[int], contexts: Sequence[int]) -> NDArray[np.int32]:
    """[tiles, 4]: first row of the step, rows, sequence, and how many positions the first row sees, itself included.

    A sequence of one row is a tile, so a step's first tiles are its decodes; others are cut every `PREFILL_ROWS` rows.
    """
    tiles, row = [], 0
    for sequence, (count, context) in enumerate(zip(rows, contexts, strict=True)):
        for start in range(0, count, PREFILL_ROWS):
            tiles.append((row + start, min(PREFILL_ROWS, count - start), sequence, context - count + start + 1))
        row += count
    return np.array(tiles, np.int32).reshape(len(tiles), 4)
