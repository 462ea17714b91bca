"""What the adapters of one step do at each site: planned once a step, or once for many steps of the same rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from hotshoe.kernels.low_rank import add_low_rank
from hotshoe.registry.formats.base import BlockId, NormId
from hotshoe.registry.formats.lowered import Bottleneck, GatedPrompt
from hotshoe.server.adapters.packed_bottleneck import PackedBottleneck
from hotshoe.server.adapters.placed_adapter import PlacedAdapter, SiteCopies, SiteRotations
from hotshoe.server.adapters.row_group import RowGroup, RowVectors, SiteWork, stack_vectors
from hotshoe.server.adapters.row_terms import RowTerms
from hotshoe.server.adapters.sites import SiteId

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class AdapterSegment:
    """Rows start … end−1 of a step, which are one sequence's, and its stack of (adapter slot, weight)."""

    start: int
    end: int
    stack: tuple[tuple[int, float], ...] = ()  # () is the base alone


class AdapterBatch:
    """The adapters of one step's rows. Rows whose stack is empty keep every bit."""

    def __init__(self, key: object, groups: Sequence[RowGroup]) -> None:
        self.key = key
        self._groups = tuple(groups)
        self._works: dict[SiteId, SiteWork] = {}
        self._row_terms: RowTerms | None = None

    def scaled_inputs(self, layer: int, site: str, x: Tensor) -> Sequence[Tensor]:
        """The site's input, scaled row by row: one tensor, or one for each target where their scales differ.

        x: [rows, in_features] float32 or bfloat16; it stays as it is.
        """
        inputs = self._work(layer, site).inputs
        scaled = [_scaled(x, rows) for rows in inputs] if inputs else [x]
        turned = [part for part in self._turned(layer, site) if any(found.turns_inputs for found, _ in part[2])]
        if not turned:
            return scaled
        targets = len(turned[0][2][0][0].inputs)
        spread = [scaled[target if len(scaled) > 1 else 0].clone() for target in range(targets)]
        for start, end, rotations in turned:
            for target, rows in enumerate(spread):
                rows[start:end] = _rotated(rows[start:end], [(r.inputs[target], weight) for r, weight in rotations])
        return spread

    def scale_output(self, layer: int, site: str, y: Tensor) -> None:
        """Scales y [rows, out_features of the site], the base's product, in place, and adds what it swaps."""
        swapped = [
            (start, end, weight * rotation.gains * y[start:end, rotation.partners])
            for start, end, rotations in self._turned(layer, site)
            for rotation, weight in rotations
            if rotation.partners is not None and rotation.gains is not None
        ]
        self._work(layer, site).output.multiply(y)
        for start, end, added in swapped:
            y[start:end] += added

    def copies(self, layer: int, site: str) -> Iterator[tuple[int, int, SiteCopies, float]]:
        """Rows start … end−1 to which a site's product is added again, with scaled inputs and outputs; times what."""
        return self._parts(lambda adapter: adapter.copies.get((layer, site)))

    def add_delta(self, layer: int, site: str, x: Tensor, y: Tensor) -> None:
        """Adds weight · (B (A x) + bias_delta) to y in place; x is the site's unscaled input."""
        work = self._work(layer, site)
        for table, plan in work.low_rank:
            add_low_rank(y, x, table, plan)
        work.bias.add_to(y)

    def gated_prompts(self, layer: int) -> Iterator[tuple[int, int, GatedPrompt, float]]:
        """Rows start … end−1 that see a gated prompt at a layer, with its weight."""
        return self._parts(lambda adapter: adapter.gated_prompts.get(layer))

    def bottlenecks(self, block: BlockId) -> Iterator[tuple[int, int, Bottleneck, float]]:
        """Rows start … end−1 that have a narrow network beside a block, with its weight; one after the other's."""
        parts: Iterator[tuple[int, int, Bottleneck | PackedBottleneck, float]]
        parts = self._parts(lambda adapter: adapter.bottlenecks.get(block))
        for start, end, found, weight in parts:
            yield start, end, found.network if isinstance(found, PackedBottleneck) else found, weight

    def norm_rows(self, norm: NormId) -> Iterator[tuple[int, int, Tensor]]:
        """Rows start … end−1 whose adapters change a norm's weights, and what they add to them, [size] float32."""
        for group in self._groups:
            for start, end, stack in group.segments:
                added = [weight * adapter.norms[norm] for adapter, weight in stack if norm in adapter.norms]
                if added:
                    yield start, end, sum(added[1:], added[0])

    def row_terms(self, *, num_rows: int, num_layers: int) -> RowTerms:
        """All this as flat arrays, built once."""
        if self._row_terms is None:
            segments = [segment for group in self._groups for segment in group.segments]
            vectors = [stack_vectors(stack) for _, _, stack in segments]
            first = self._groups[0]
            self._row_terms = RowTerms(
                segments, vectors, tables=first.tables, shapes=first.shapes, num_layers=num_layers, num_rows=num_rows
            )
        return self._row_terms

    def _turned(self, layer: int, site: str) -> Iterator[tuple[int, int, list[tuple[SiteRotations, float]]]]:
        """Rows start … end−1 whose adapters turn a site's inputs or outputs, and how, with weights."""
        for group in self._groups:
            for start, end, stack in group.segments:
                found = [(a.rotations[layer, site], weight) for a, weight in stack if (layer, site) in a.rotations]
                if found:
                    yield start, end, found

    def _parts(self, part: Callable[[PlacedAdapter], T | None]) -> Iterator[tuple[int, int, T, float]]:
        """Rows start … end−1 whose adapters have a part, that part and its weight; one after the other's."""
        for group in self._groups:
            for start, end, stack in group.segments:
                for adapter, weight in stack:
                    if (found := part(adapter)) is not None:
                        yield start, end, found, weight

    def _work(self, layer: int, site: str) -> SiteWork:
        work = self._works.get((layer, site))
        if work is None:
            work = self._groups[0].work((layer, site))
            for group in self._groups[1:]:
                work = work.with_other_rows(group.work((layer, site)))
            self._works[layer, site] = work
        return work


def _rotated(rows: Tensor, rotations: Sequence[tuple[Tensor | None, float]]) -> Tensor:
    """rows + Σ cᵢ (rows turned by the i-th − rows), each block of a row times its matrix."""
    total = rows.float()
    for matrices, weight in rotations:
        if matrices is not None:
            blocks = rows.float().unflatten(1, matrices.shape[:2])
            turned = torch.einsum("nrk,rkc->nrc", blocks, matrices).flatten(1)
            total = total + weight * (turned - rows.float())
    return total.to(rows.dtype)


def _scaled(x: Tensor, rows: RowVectors) -> Tensor:
    if not rows.parts:
        return x
    scaled = x.clone()
    rows.multiply(scaled)
    return scaled
