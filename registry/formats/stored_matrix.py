"""A matrix as its file has it, so that an adapter in 16 bits takes no more memory lowered than it does on disk."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_SAFE_SCALE = 2.0**63


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """scale · float32(values): what it stands for is made, and multiplied, in float32 where it is needed."""

    values: "Tensor"  # float16 or bfloat16 on the CPU, contiguous; finite and below 2^64, as reading them checks
    scale: float = 1.0

    @property
    def shape(self) -> "torch.Size":
        return self.values.shape

    @property
    def is_finite(self) -> bool:
        """Whether every number that it stands for is: a large scale can overflow what the file holds."""
        return abs(self.scale) < _SAFE_SCALE or bool(self.wide().isfinite().all())

    def wide(self) -> "Tensor":
        """Float32, each number as reading it so would have given it: a copy."""
        wide = self.values.float()
        return wide if self.scale == 1 else wide.mul_(self.scale)


def wide(matrix: "Tensor | StoredMatrix") -> "Tensor":
    """Float32, of whichever it is."""
    return matrix.wide() if isinstance(matrix, StoredMatrix) else matrix
