"""Where the low-rank factors of adapters with the same ranks lie in one flat tensor each, at their true ranks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable, units_of
from hotshoe.server.adapters.placed_adapter import tabulated_ranks
from hotshoe.server.adapters.sites import SiteId, SiteShape


@dataclass(frozen=True, slots=True)
class FactorPair:
    """One linear's Aᵀ and Bᵀ, as views: A and B themselves are contiguous."""

    target: int  # of the site
    rank: int
    a: Tensor  # [in_features, rank]
    b: Tensor  # [rank, out_features]


@dataclass(frozen=True)
class FactorLayout:
    """The order and the sizes of factors: by site in layer order, then by target, A before B, each as its file has it.

    One tensor for each adapter, and one layout for all with the same ranks: thousands of adapters on the host cost
    Python's garbage collector next to nothing.
    """

    sites: tuple[tuple[SiteId, SiteShape, tuple[int, ...]], ...]  # and the rank of each target, where one is not 0
    starts: tuple[int, ...] = ()  # where each begins; empty if they lie one behind the other

    @cached_property
    def ranks(self) -> Mapping[SiteId, tuple[int, ...]]:
        return {site: ranks for site, _, ranks in self.sites}

    @cached_property
    def num_units(self) -> int:
        """Units of the device's tables that each site takes."""
        return units_of(max((max(ranks) for _, _, ranks in self.sites), default=0))

    @cached_property
    def has_unused_ranks(self) -> bool:
        """Whether a target somewhere has fewer ranks than the units that its site takes."""
        return any(rank < self.num_units * UNIT_RANK for _, _, ranks in self.sites for rank in ranks)

    @cached_property
    def folds(self) -> bool:
        """Whether its factors fit half a unit of lines, and halves of its inputs whole lines of 16."""
        few = all(max(ranks) <= UNIT_RANK // 2 for _, _, ranks in self.sites)
        return few and all(shape.in_features % UNIT_RANK == 0 for _, shape, _ in self.sites)

    @cached_property
    def num_elements(self) -> int:
        return max((start + size for start, size in self._spans), default=0)

    @cached_property
    def num_device_elements(self) -> int:
        """The same on the device, where a site's ranks are rounded up to units for all its targets."""
        return sum(
            units_of(max(ranks)) * UNIT_RANK * (len(ranks) * shape.in_features + sum(shape.widths))
            for _, shape, ranks in self.sites
        )

    def by_site(self, flat: Tensor) -> Iterator[tuple[SiteId, list[FactorPair]]]:
        """The factors in a flat tensor of `num_elements`, as views, one site after another."""
        parts = iter(flat[start : start + size] for start, size in self._spans)
        for site, shape, ranks in self.sites:
            yield (
                site,
                [
                    FactorPair(
                        target,
                        rank,
                        next(parts).view(rank, shape.in_features).t(),
                        next(parts).view(shape.widths[target], rank).t(),
                    )
                    for target, rank in enumerate(ranks)
                    if rank
                ],
            )

    def rank_table(self, num_layers: int) -> NDArray[np.int64]:
        """`PlacedAdapter.rank_table`, shared by all adapters of this layout."""
        return _rank_table(self, num_layers)

    @cached_property
    def _spans(self) -> list[tuple[int, int]]:
        """Of each factor, where it begins and how many numbers it has."""
        sizes = [
            size
            for _, shape, ranks in self.sites
            for target, rank in enumerate(ranks)
            if rank
            for size in (rank * shape.in_features, shape.widths[target] * rank)
        ]
        return list(zip(self.starts or accumulate(sizes, initial=0), sizes, strict=False))


@lru_cache(maxsize=256)
def factor_layout(
    sites: tuple[tuple[SiteId, SiteShape, tuple[int, ...]], ...], starts: tuple[int, ...] = ()
) -> FactorLayout:
    """The layout of these sites, ranks and starts: one object for all who ask."""
    return FactorLayout(sites, starts)


@lru_cache(maxsize=256)
def _rank_table(layout: FactorLayout, num_layers: int) -> NDArray[np.int64]:
    return tabulated_ranks(layout.ranks, num_layers)


def pieces_of(pairs: Sequence[FactorPair], *, folded: bool) -> list[Tensor]:
    """A site's factors in pieces that each fit one unit of the device's tables: views, in the order of `places_of`."""
    pieces: list[Tensor] = []
    for pair in pairs:
        if folded:
            pieces += pair.a.split(pair.a.shape[0] // 2)
        else:
            pieces += (pair.a,) if pair.rank <= UNIT_RANK else pair.a.split(UNIT_RANK, dim=1)
        pieces.append(pair.b)
    return pieces


def last_pieces(pairs: Sequence[FactorPair], *, folded: bool) -> list[int]:
    """Which of a site's pieces are the pairs' B, behind what there is of A."""
    ends = accumulate((2 if folded else units_of(pair.rank)) + 1 for pair in pairs)
    return [end - 1 for end in ends]


def places_of(ranks: Sequence[int], table: LowRankTable, first_unit: int, *, folded: bool) -> list[Tensor]:
    """Where the pieces of a site with these ranks go in its table, from `first_unit` on: views."""
    places: list[Tensor] = []
    for target, rank in enumerate(ranks):
        if folded and rank:
            places += table.folded_of(first_unit, target, rank)
        for unit in range(0 if folded else units_of(rank)):
            places.append(table.a_of(first_unit + unit, target, min(UNIT_RANK, rank - unit * UNIT_RANK)))
        if rank:
            places.append(table.b_of(first_unit, target, rank))
    return places
