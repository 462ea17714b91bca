"""What the benchmark of the kernels runs: one kernel at one shape, for a model of some sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Run = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of a model, and of what is asked of it; as they are, Llama-3.1-8B's."""

    hidden: int = 4096
    intermediate: int = 14336
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    rows: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    adapters: tuple[int, ...] = (1, 8, 32)
    contexts: tuple[int, ...] = (1024, 8192)
    prompt: int = 2048

    @property
    def widths(self) -> tuple[int, int, int]:
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one shape: what to run, what to run instead, and what cannot be avoided."""

    op: str
    shape: str
    run: Run
    alternatives: dict[str, Run]
    bytes: int
    flops: int = 0
