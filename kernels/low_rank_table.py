"""Where the factors of many low-rank updates lie, and how a step names those that it wants."""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

UNIT_RANK = 16  # ranks that lie and are read together


@dataclass(frozen=True)
class LowRankTable:
    """Low-rank factors for one fused linear, in units of `UNIT_RANK` ranks; an update takes consecutive units.

    An update of up to half a unit's ranks may lie folded: what it would leave empty of A's lines holds the second half
    of its inputs, so that it has half as many of them to read.

    Units of other updates may hold anything, also NaN: no result reads them. Within an update's own units, ranks that
    it does not have must be finite: libraries' GEMMs may multiply them, by 0.
    """

    a: Tensor  # [units, in_features, targets · UNIT_RANK]: [u, :, t · UNIT_RANK + i] is a row of target t's A
    b: Tensor  # [units · UNIT_RANK, out_features]: a row is a column of each target's B, side by side
    widths: tuple[int, ...]  # output columns of each target

    def __post_init__(self) -> None:
        units, columns = self.a.shape[0], len(self.widths) * UNIT_RANK
        if self.a.ndim != 3 or self.a.shape[2] != columns:
            raise ValueError(f"a: expected [units, in_features, {columns}], not {list(self.a.shape)}")
        if self.b.shape != (units * UNIT_RANK, sum(self.widths)):
            raise ValueError(f"b: expected [{units * UNIT_RANK}, {sum(self.widths)}], not {list(self.b.shape)}")
        if self.a.dtype != self.b.dtype or not self.a.is_contiguous() or not self.b.is_contiguous():
            raise ValueError("a, b: expected contiguous tensors of one dtype")

    @cached_property
    def in_features(self) -> int:
        return self.a.shape[1]

    @cached_property
    def columns(self) -> tuple[slice, ...]:
        """Each target's columns of the output."""
        ends = [sum(self.widths[: i + 1]) for i in range(len(self.widths))]
        return tuple(slice(end - width, end) for end, width in zip(ends, self.widths, strict=True))

    @cached_property
    def flat_a(self) -> Tensor:
        """[units · in_features, targets · UNIT_RANK]"""
        return self.a.view(-1, self.a.shape[2])

    def a_of(self, unit: int, target: int, rank: int) -> Tensor:
        """[in_features, rank]: Aᵀ of the update that begins at `unit`."""
        span = self.a[unit : unit + units_of(rank), :, target * UNIT_RANK : (target + 1) * UNIT_RANK]
        if span.shape[0] == 1:
            return span[0, :, :rank]
        return span.permute(1, 0, 2).reshape(self.in_features, -1)[:, :rank]

    def folded_of(self, unit: int, target: int, rank: int) -> tuple[Tensor, Tensor]:
        """[in_features / 2, rank] twice, as views: Aᵀ of the folded update at `unit`, of either half of the inputs."""
        first = target * UNIT_RANK
        half = self.a[unit, : self.in_features // 2]
        return half[:, first : first + rank], half[:, first + UNIT_RANK // 2 : first + UNIT_RANK // 2 + rank]

    def b_of(self, unit: int, target: int, rank: int) -> Tensor:
        """[rank, width]: Bᵀ of the update that begins at `unit`, as a view."""
        return self.b[unit * UNIT_RANK : unit * UNIT_RANK + rank, self.columns[target]]


@dataclass(frozen=True, slots=True)
class LowRankTerm:
    """One update: where it begins, its rank at each target (0: it leaves that one alone), its weight, how it lies."""

    unit: int
    ranks: tuple[int, ...]
    weight: float = 1.0
    folded: bool = False

    @property
    def num_units(self) -> int:
        return units_of(max(self.ranks))


@dataclass(frozen=True, slots=True)
class LowRankSegment:
    """Rows start … end−1, which are one sequence's, and what is added to them."""

    start: int
    end: int
    terms: tuple[LowRankTerm, ...]


def units_of(rank: int) -> int:
    """How many units that many ranks take."""
    return -(-rank // UNIT_RANK)
