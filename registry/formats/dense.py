"""Kinds whose update is a dense matrix of full rank: served as its nearest of low rank, where their publisher asked.

What is served is then not what was trained, so the share of the update that is kept goes into the manifest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import Approximation, LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import Config
from hotshoe.registry.formats.plan import Read, Tensors
from hotshoe.registry.formats.principal_factors import principal_factors

if TYPE_CHECKING:
    from torch import Tensor


class DensePart(Protocol):
    """One linear's claimed tensors, and the numbers that its config gives it."""

    def update(self, linear: LinearId, read: Read, base: BaseWeights) -> "Tensor":
        """Δ of y = (W + Δ) x + b, [out_features, in_features]. Reads every tensor that was claimed once."""


@dataclass(frozen=True, slots=True)
class DensePlan:
    """A part for each linear, in base order."""

    kind: str
    parts: Mapping[LinearId, DensePart]


DenseFormat = Callable[[Config, Tensors, BaseShape], DensePlan]  # takes fields and tensors; raises InvalidAdapter


@dataclass(frozen=True, slots=True)
class ApproximatePlan:
    """A dense plan cut to a rank: a `Plan`."""

    dense: DensePlan
    wanted_rank: int
    base: BaseShape
    virtual_tokens: int = 0

    @property
    def rank(self) -> int:
        return max(map(self._rank_at, self.dense.parts))

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.dense.parts)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        linears = {}
        kept = total = 0.0
        least, least_linear = 1.0, ""
        for linear, part in self.dense.parts.items():
            factors, rank = principal_factors(part.update(linear, read, base)), self._rank_at(linear)
            a, b = factors.cut(rank)
            linears[linear] = LoweredLinear(a=a, b=b)
            kept, total = kept + float(factors.squares[:rank].sum()), total + float(factors.squares.sum())
            if not least_linear or factors.energy(rank) < least:
                least, least_linear = factors.energy(rank), str(linear)
        energy = kept / total if total else 1.0
        return LoweredAdapter(
            self.dense.kind,
            linears,
            approximation=Approximation(self.wanted_rank, energy, least, least_linear),
        )

    def _rank_at(self, linear: LinearId) -> int:
        shape = self.base.linears[linear]
        return min(self.wanted_rank, shape.in_features, shape.out_features)
