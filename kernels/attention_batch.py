"""Who attends to what in one step, as tensors: made by the engine, read by the attention kernels."""

from dataclasses import dataclass

from torch import Tensor


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
