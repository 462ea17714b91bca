"""The logits of a step, and what was read in them while they were written."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class StepLogits:
    """None where whoever computed them did not look."""

    values: Tensor  # [rows, vocab_size] float32
    finite: list[bool] | None = None  # whether all of a row is
    likeliest: list[int] | None = None  # each row's token with the largest logit; of equal ones, the lower id
