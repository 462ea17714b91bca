"""How a step's rows turn their inputs and swap their outputs, as compiled code reads it."""

from collections.abc import Mapping, Sequence
from math import lcm

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.server.adapters.kept_arrays import KeptArrays
from hotshoe.server.adapters.placed_adapter import NO_VECTORS, PlacedAdapter, SiteRotations, SiteVectors
from hotshoe.server.adapters.sites import MAX_TARGETS, SITE_INDEX, SITES, SiteId, SiteShape
from hotshoe.server.adapters.term_blocks import Segment, row_blocks

Weighted = list[tuple[SiteRotations, float]]


class RowTurns:
    """Of each segment its inputs' scales and matrices, at sites where any segment's differ by target or turn.

    Attributes:
        addresses: the fields of a job that say so.
        any: whether there are such sites.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        vectors: Sequence[Mapping[SiteId, SiteVectors]],
        *,
        shapes: Mapping[SiteId, SiteShape],
        num_layers: int,
        num_rows: int,
        kept: KeptArrays,
    ) -> None:
        self._kept, self._shapes = kept, shapes
        turns = [_rotations(stack) for *_, stack in segments]
        flags = np.zeros((num_layers, len(SITES)), np.int64)
        for found, turned in zip(vectors, turns, strict=True):
            for (layer, site), of_site in found.items():
                flags[layer, SITE_INDEX[site]] |= len(of_site.inputs) > 1
            for (layer, site), weighted in turned.items():
                flags[layer, SITE_INDEX[site]] |= any(rotations.turns_inputs for rotations, _ in weighted)
        self.any = bool(flags.any())
        self.addresses = {"site_turns": kept.address(flags) if self.any else 0, **self._swaps(turns, num_layers)}
        if self.any:
            rows, starts = row_blocks(segments, num_rows)
            self.addresses |= {
                "turns": kept.address(self._table(flags, vectors, turns)),
                "num_turn_blocks": len(starts) - 1,
                "turn_rows": kept.address(rows),
                "turn_blocks": kept.address(starts),
            }

    def _table(
        self,
        flags: NDArray[np.int64],
        vectors: Sequence[Mapping[SiteId, SiteVectors]],
        turns: Sequence[Mapping[SiteId, Weighted]],
    ) -> NDArray[np.int64]:
        """[segments, layers, sites, targets, 3]: addresses of a scale and of matrices, and these' size."""
        table = np.zeros((len(turns), *flags.shape, MAX_TARGETS, 3), np.int64)
        for segment, (found, turned) in enumerate(zip(vectors, turns, strict=True)):
            for layer, index in np.argwhere(flags).tolist():
                site = (layer, tuple(SITES)[index])
                scales, weighted = found.get(site, NO_VECTORS), turned.get(site, [])
                for target in range(len(self._shapes[site].targets)):
                    place = table[segment, layer, index, target]
                    place[0] = self._kept.address_of(scales.input_of(target))
                    matrices = _combined([(rotations.inputs[target], weight) for rotations, weight in weighted])
                    if matrices is not None:
                        place[1:] = self._kept.address_of(matrices), matrices.shape[1]
        return table

    def _swaps(self, turns: Sequence[Mapping[SiteId, Weighted]], num_layers: int) -> dict[str, int]:
        swaps: list[tuple[int, int, SiteId, Tensor, Tensor]] = []
        for segment, turned in enumerate(turns):
            for site, weighted in turned.items():
                parts = [(r.partners, r.gains, weight) for r, weight in weighted if r.partners is not None]
                for index, (partners, gains, weight) in enumerate(parts):
                    assert partners is not None and gains is not None
                    swaps.append((index, segment, site, partners, gains if weight == 1.0 else weight * gains))
        if not swaps:
            return {"site_swaps": 0}
        depth = 1 + max(index for index, *_ in swaps)
        table = np.zeros((depth, len(turns), num_layers, len(SITES), 2), np.int64)
        for index, segment, (layer, name), partners, gains in swaps:
            self._kept.keep(partners)
            place = index, segment, layer, SITE_INDEX[name]
            table[place] = partners.data_ptr(), self._kept.address_of(gains)
        flags = table[..., 0].any(axis=(0, 1))
        return {"swap_depth": depth, "swaps": self._kept.address(table), "site_swaps": self._kept.address(flags)}


def _rotations(stack: Sequence[tuple[PlacedAdapter, float]]) -> dict[SiteId, Weighted]:
    """What a stack turns or swaps at each site, with weights."""
    found: dict[SiteId, Weighted] = {}
    for adapter, weight in stack:
        for site, rotations in adapter.rotations.items():
            found.setdefault(site, []).append((rotations, weight))
    return found


def _combined(turns: Sequence[tuple[Tensor | None, float]]) -> Tensor | None:
    """1 + Σ cᵢ (Rᵢ − 1) of block diagonal matrices, in blocks as large as it needs."""
    present = [(matrices, weight) for matrices, weight in turns if matrices is not None]
    if not present:
        return None
    if len(present) == 1 and present[0][1] == 1.0:
        return present[0][0]
    size = lcm(*(matrices.shape[1] for matrices, _ in present))
    one = torch.eye(size)
    return sum((weight * (_in_blocks(matrices, size) - one) for matrices, weight in present), one).contiguous()


def _in_blocks(matrices: Tensor, size: int) -> Tensor:
    """The same block diagonal matrix in blocks of `size`, which theirs divides."""
    small = matrices.shape[1]
    if small == size:
        return matrices
    groups = matrices.unflatten(0, (-1, size // small))
    return torch.stack([torch.block_diag(*group) for group in groups])
