"""A full fine-tune as an adapter: what it adds to each linear of a base, cut to the ranks that keep most of it.

Held against the weights that are served, the factors also carry what quantization lost; held against the original ones,
only what training added. Either way the cut is the nearest of its rank (Eckart and Young).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.principal_factors import PrincipalFactors, principal_factors
from hotshoe.registry.recipes.factors import Factors
from hotshoe.registry.validation import Pause, go_on

if TYPE_CHECKING:
    from torch import Tensor

Weights = Callable[[LinearId], "Tensor"]  # [out_features, in_features]
_LEAST_ENERGY = 0.5  # that a rank must keep, or the update is flat
_MOST_NUMBERS = 0.5  # of W's own, in its factors


@dataclass(frozen=True, slots=True)
class Cut:
    """Where an update's factors end: at a rank, or where a share of its energy is kept.

    Raises ValueError unless exactly one of the two is given.
    """

    rank: int | None = None
    energy: float | None = None
    max_rank: int = 256

    def __post_init__(self) -> None:
        if (self.rank is None) == (self.energy is None):
            raise ValueError("rank: expected a rank or a share of energy, and not both")
        if self.rank is not None and not 1 <= self.rank <= self.max_rank:
            raise ValueError(f"rank: expected 1 to {self.max_rank}, found {self.rank}")
        if self.energy is not None and not 0 < self.energy < 1:
            raise ValueError(f"rank_energy: expected a number between 0 and 1, found {self.energy}")

    def rank_of(self, factors: PrincipalFactors) -> int:
        """0 for an update of nothing."""
        wanted = self.rank if self.energy is None else factors.rank_of(self.energy)
        assert wanted is not None
        return min(wanted, self.max_rank, int((factors.squares > 0).sum()))


@dataclass(frozen=True, slots=True)
class ExtractedLinear:
    """What became of one linear's update Δ."""

    rank: int
    energy: float  # the share of ‖Δ‖² that is kept
    relative_norm: float  # ‖Δ‖ / ‖W‖
    kept: float  # of `total`
    total: float  # ‖Δ‖²


@dataclass(frozen=True, slots=True)
class Extraction:
    """Low-rank updates, and what they keep."""

    updates: Mapping[LinearId, Factors]  # those that are not nothing
    linears: Mapping[LinearId, ExtractedLinear]
    energy: float  # kept, all linears together
    numbers: float  # in the factors, by those in the weights that they change
    cut: Cut

    @property
    def flatness(self) -> str:
        """Why these updates are not worth having as factors; "" if they are."""
        wanted = self.cut.energy if self.cut.energy is not None else _LEAST_ENERGY
        if self.energy < wanted * (1 - 1e-9):
            return f"rank {self._rank} keeps {self.energy:.1%} of the update, {wanted:.1%} is wanted"
        if self.numbers > _MOST_NUMBERS:
            return f"the factors hold {self.numbers:.0%} as many numbers as the weights that they change"
        return ""

    @property
    def _rank(self) -> int:
        return max((linear.rank for linear in self.linears.values()), default=0)


def extract(tuned: Weights, reference: Weights, shape: BaseShape, cut: Cut, *, pause: Pause = go_on) -> Extraction:
    """The updates that lead from `reference` to `tuned`, linear by linear; one dense matrix is held at a time."""
    updates, linears = {}, {}
    for linear in shape.linears:
        pause()
        weight = reference(linear)
        factors = principal_factors(tuned(linear).double() - weight.double())
        rank = cut.rank_of(factors)
        total, kept = float(factors.squares.sum()), float(factors.squares[:rank].sum())
        linears[linear] = ExtractedLinear(
            rank, factors.energy(rank), (total / float(weight.double().square().sum())) ** 0.5, kept, total
        )
        if rank:
            updates[linear] = Factors(*factors.cut(rank))
    total = sum(linear.total for linear in linears.values())
    sides = {linear: shape.linears[linear] for linear in updates}
    dense = sum(sizes.out_features * sizes.in_features for sizes in sides.values())
    in_factors = sum(linears[linear].rank * (s.out_features + s.in_features) for linear, s in sides.items())
    return Extraction(
        updates,
        linears,
        energy=sum(linear.kept for linear in linears.values()) / total if total else 1.0,
        numbers=in_factors / dense if dense else 0.0,
        cut=cut,
    )
