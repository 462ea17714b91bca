"""Rows of a step that are computed in one way, and what they need at each site."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from hotshoe.kernels.low_rank import (
    UNIT_RANK,
    LowRankKind,
    LowRankPlan,
    LowRankSegment,
    LowRankTable,
    LowRankTerm,
    plan_low_rank,
)
from hotshoe.kernels.low_rank_table import units_of
from hotshoe.server.adapters.placed_adapter import NO_VECTORS, PlacedAdapter, SiteVectors
from hotshoe.server.adapters.sites import SiteId, SiteShape

Stack = tuple[tuple[PlacedAdapter, float], ...]  # with weights; () is the base alone
_NEUTRAL_SUMMAND = -0.0  # unlike 0.0, it leaves every number as it is, −0.0 too


@dataclass(frozen=True, slots=True)
class RowVectors:
    """Vectors for some of a step's rows; the others have none."""

    parts: tuple[tuple[int, int, Tensor], ...]  # start, end, [features] or [end − start, features]

    def multiply(self, rows: Tensor) -> None:
        for start, end, values in self.parts:
            rows[start:end].mul_(values)

    def add_to(self, rows: Tensor) -> None:
        for start, end, values in self.parts:
            rows[start:end].add_(values)


NO_ROWS = RowVectors(())


@dataclass(frozen=True, slots=True)
class SiteWork:
    """What one site of a step takes beside the base's GEMM."""

    inputs: tuple[RowVectors, ...]  # one for all targets, or one for each; () if no input is scaled
    output: RowVectors
    bias: RowVectors
    low_rank: tuple[tuple[LowRankTable, LowRankPlan], ...]

    def with_other_rows(self, other: "SiteWork") -> "SiteWork":
        """The work of both, which are for different rows."""
        targets = max(len(self.inputs), len(other.inputs))
        own, others = (_spread(work.inputs, targets) for work in (self, other))
        return SiteWork(
            inputs=tuple(RowVectors(a.parts + b.parts) for a, b in zip(own, others, strict=True)),
            output=RowVectors(self.output.parts + other.output.parts),
            bias=RowVectors(self.bias.parts + other.bias.parts),
            low_rank=self.low_rank + other.low_rank,
        )


class RowGroup:
    """Segments that are computed in one way, and what they need at each site; plans are shared between layers."""

    def __init__(
        self,
        key: tuple[tuple[int, int, Stack], ...],
        *,
        kind: LowRankKind,
        tables: Mapping[SiteId, LowRankTable],
        shapes: Mapping[SiteId, SiteShape],
    ) -> None:
        self.key = key
        self.tables = tables
        self._kind = kind
        self.shapes = shapes
        self.segments = [(start, end, stack) for start, end, stack in key if stack]
        self._adapters = list({adapter: None for _, _, stack in self.segments for adapter, _ in stack})
        self._plans: dict[object, LowRankPlan | None] = {}
        self._works: dict[SiteId, SiteWork] = {}

    @property
    def has_stacks(self) -> bool:
        return bool(self.segments)

    def work(self, site: SiteId) -> SiteWork:
        """What the group's rows need at a site."""
        work = self._works.get(site)
        if work is None:
            work = self._works[site] = self._build(site)
        return work

    def _build(self, site: SiteId) -> SiteWork:
        plan = self._plan(site)
        low_rank = () if plan is None else ((self.tables[site], plan),)
        if not any(site in adapter.vectors for adapter in self._adapters):
            return SiteWork((), NO_ROWS, NO_ROWS, low_rank)
        rows = [(start, end, _combined(stack, site)) for start, end, stack in self.segments]
        targets = max(len(vectors.inputs) for _, _, vectors in rows)
        inputs = [
            self._row_vectors([(start, end, vectors.input_of(target)) for start, end, vectors in rows], 1.0)
            for target in range(targets)
        ]
        return SiteWork(
            inputs=tuple(inputs) if any(scaled.parts for scaled in inputs) else (),
            output=self._row_vectors([(start, end, vectors.output) for start, end, vectors in rows], 1.0),
            bias=self._row_vectors([(start, end, vectors.bias) for start, end, vectors in rows], _NEUTRAL_SUMMAND),
            low_rank=low_rank,
        )

    def _plan(self, site: SiteId) -> LowRankPlan | None:
        """The plan of a site, shared by all sites of the same shape where the adapters have the same ranks."""
        ranks = tuple(adapter.ranks.get(site) for adapter in self._adapters)
        shape = self.shapes[site]
        key = (shape, ranks)
        if key not in self._plans:
            segments = [LowRankSegment(start, end, _terms(stack, site)) for start, end, stack in self.segments]
            self._plans[key] = None
            if any(segment.terms for segment in segments):
                self._plans[key] = plan_low_rank(
                    segments, in_features=shape.in_features, widths=shape.widths, kind=self._kind
                )
        return self._plans[key]

    def _row_vectors(self, rows: Sequence[tuple[int, int, Tensor | None]], neutral: float) -> RowVectors:
        """One part for rows that are a sequence each, else one for each segment."""
        present = [(start, end, vector) for start, end, vector in rows if vector is not None]
        if self._kind != "gathered" or len(present) < 2:
            return RowVectors(tuple(present))
        first, last = present[0][0], present[-1][1]
        values = torch.full((last - first, present[0][2].shape[0]), neutral, device=present[0][2].device)
        index = torch.tensor([start - first for start, _, _ in present])
        values[index] = torch.stack(list(map(itemgetter(2), present)))
        return RowVectors(((first, last, values),))


def stack_vectors(stack: Stack) -> dict[SiteId, SiteVectors]:
    """What a stack has at each site where one of its adapters has vectors."""
    return {site: _combined(stack, site) for site in {site for adapter, _ in stack for site in adapter.vectors}}


def _terms(stack: Stack, site: SiteId) -> tuple[LowRankTerm, ...]:
    return tuple(
        LowRankTerm(unit, ranks, weight, adapter.folded)
        for adapter, weight in stack
        if site in adapter.ranks
        for unit, ranks in _unit_runs(adapter.units, adapter.ranks[site])
    )


def _unit_runs(units: Sequence[int], ranks: Sequence[int]) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Where units that follow one another begin, and of how many ranks of each target they are."""
    needed, start = units_of(max(ranks)), 0
    for end in range(1, needed + 1):
        if end == needed or units[end] != units[end - 1] + 1:
            first, last = start * UNIT_RANK, end * UNIT_RANK
            yield units[start], tuple(min(max(rank - first, 0), last - first) for rank in ranks)
            start = end


def _combined(stack: Stack, site: SiteId) -> SiteVectors:
    """A stack's vectors at a site: scales 1 + Σ cᵢ (sᵢ − 1), bias deltas Σ cᵢ dᵢ."""
    found = [(adapter.vectors.get(site, NO_VECTORS), weight) for adapter, weight in stack]
    if len(found) == 1 and found[0][1] == 1.0:
        return found[0][0]
    targets = max(len(vectors.inputs) for vectors, _ in found)
    return SiteVectors(
        inputs=tuple(
            _weighted_sum([(vectors.input_of(target), weight) for vectors, weight in found], around=1.0)
            for target in range(targets)
        ),
        output=_weighted_sum([(vectors.output, weight) for vectors, weight in found], around=1.0),
        bias=_weighted_sum([(vectors.bias, weight) for vectors, weight in found], around=0.0),
    )


def _weighted_sum(vectors: Sequence[tuple[Tensor | None, float]], *, around: float) -> Tensor | None:
    """around + Σ cᵢ (vᵢ − around), None if there is no vector."""
    terms = [weight * (vector - around) for vector, weight in vectors if vector is not None]
    return sum(terms, torch.tensor(around, device=terms[0].device)) if terms else None


def _spread(inputs: tuple[RowVectors, ...], targets: int) -> tuple[RowVectors, ...]:
    """One for each target, of one for all or of none."""
    return inputs if len(inputs) == targets else (inputs or (NO_ROWS,)) * targets
