"""Parametrized hypercomplex multiplication, as Compacter has it: a matrix that is a sum of Kronecker products."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.formats.plan import Read
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Hypercomplex:
    """y = x Σᵢ ruleᵢ ⊗ partᵢ + bias. Rules and parts are one tensor each, or two whose product they are."""

    rules: Sequence[TensorEntry]  # [n, n, n]; or [n, n, 1] and [n, 1, n]
    parts: Sequence[TensorEntry]  # [n, in / n, out / n]; or [n, in / n, rank] and [n, rank, out / n]
    bias: TensorEntry | None  # [out]

    def lower(self, read: Read, *, scale: float = 1.0) -> "tuple[Tensor, Tensor | None]":
        """The matrix as a linear holds it, [out, in], and the bias, both times scale."""
        import torch

        rules, parts = (_product([read(entry) for entry in entries]) for entries in (self.rules, self.parts))
        matrix = torch.einsum("nij,nkl->ikjl", rules, parts).flatten(2).flatten(0, 1)  # [in, out]
        bias = None if self.bias is None else read(self.bias, scale=scale)
        return (scale * matrix.T).float().contiguous(), bias


def _product(factors: "Sequence[Tensor]") -> "Tensor":
    """In float64."""
    first, *rest = (factor.double() for factor in factors)
    return first @ rest[0] if rest else first
