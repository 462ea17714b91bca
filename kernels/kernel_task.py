"""What a kernel is asked to do, and is judged by. The table of what there is to do is `kernel_tasks`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}  # of the output's largest value


@dataclass(frozen=True, slots=True)
class Draw:
    """Where random inputs come from. Small ones are for the interpreter, the others for timing."""

    generator: torch.Generator
    device: torch.device
    dtype: torch.dtype
    small: bool

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normal numbers times `scale`, of the draw's dtype unless another is given."""
        values = torch.randn(shape, generator=self.generator) * scale
        return values.to(self.device, self.dtype if dtype is None else dtype)

    def bytes(self, count: int) -> Tensor:
        """So many random bytes."""
        return torch.randint(0, 256, (count,), generator=self.generator, dtype=torch.uint8).to(self.device)

    def integer(self, low: int, high: int) -> int:
        """low ≤ value < high"""
        return int(torch.randint(low, high, (), generator=self.generator))


@dataclass(frozen=True, slots=True)
class KernelTask:
    """An operation: `name` is also the function that a kernel file defines; it takes the inputs as keywords."""

    name: str
    inputs: Callable[[Draw], Inputs]
    expected: Callable[[Inputs], tuple[Tensor, ...]]  # in float64: what it returns, then what it writes
    alternative: str  # what the speed is measured against, in words
    run_alternative: Callable[[Inputs], object]
    writes: tuple[str, ...] = ()  # inputs that it changes in place
