"""Merges that look at every number of an update: TIES, DARE, DELLA, breadcrumbs. Definitions are mergekit's.

1. Each parent's update is thinned out: its largest numbers stay (ties), or random ones, scaled up (dare), or random
   ones of which large ones are likelier (della), or those that are neither the largest nor small (breadcrumbs).
2. Weighted numbers are added: all of them (dare_linear, breadcrumbs), or those whose sign is that of their sum.
3. With `normalize`, the sum is over the weights of what was added.

The result has no rank of its own. It is made in tiles of rows, twice, and never held: once to find the subspace of its
columns by a random sketch, once for its part there (Halko, Martinsson, Tropp, https://arxiv.org/abs/0909.4061).
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from hotshoe.registry.recipes.factors import Factors, truncated
from hotshoe.registry.recipes.merge_parameters import MergeParameters

if TYPE_CHECKING:
    from torch import Generator, Tensor

ELEMENTWISE = frozenset({"breadcrumbs", "dare_linear", "dare_ties", "della", "ties"})
_BY_SIGN = frozenset({"dare_ties", "della", "ties"})
TILE_ROWS = 256
_OVERSAMPLING, _POWER_STEPS = 10, 2  # of the sketch
_BINS, _ROUNDS = 1024, 3  # of the search for a magnitude: to a 2^-30th of the largest


def merge_elementwise(
    updates: Sequence[Factors], weights: Sequence[float], parameters: MergeParameters, rank: int, *, name: str
) -> tuple[Factors, float, float]:
    """The merged update cut to a rank, the share of its ‖Δ‖² that is kept, and that ‖Δ‖².

    Args:
        name: of the linear: its random numbers depend on the seed and on nothing else but that.
    """
    import torch

    merge = _Merged(updates, weights, parameters, name)
    rows, columns = merge.shape
    width = min(rank + _OVERSAMPLING, rows, columns)
    directions = torch.randn(columns, width, generator=_random(parameters.seed, name, "sketch"))
    for _ in range(1 + _POWER_STEPS):  # each time nearer to the leading right vectors
        image = torch.cat([tile @ directions for _, tile in merge.tiles()])
        basis = torch.linalg.qr(image).Q
        directions = torch.linalg.qr(_transposed_product(merge, basis)).Q
    size = sum(float(tile.double().square().sum()) for _, tile in merge.tiles())
    part = _transposed_product(merge, basis)  # Δᵀ basis
    cut, share = truncated(Factors(part.T, basis), rank)
    inside = float(part.double().square().sum())
    return cut, share * inside / size if size else 1.0, size


def _transposed_product(merge: "_Merged", basis: "Tensor") -> "Tensor":
    return sum(tile.T @ basis[start : start + len(tile)] for start, tile in merge.tiles())  # type: ignore[return-value]


class _Merged:
    """A merged update, row by row."""

    def __init__(
        self, updates: Sequence[Factors], weights: Sequence[float], parameters: MergeParameters, name: str
    ) -> None:
        self._updates = updates
        self._weights = weights
        self._parameters = parameters
        self._name = name
        self.shape = updates[0].b.shape[0], updates[0].a.shape[1]
        self._bounds = [self._magnitudes(update) for update in updates]
        self._scales = [self._l1_scale(parent) for parent in range(len(updates))]

    def tiles(self) -> "Iterator[tuple[int, Tensor]]":
        """(first row, [rows, in_features] float32), the same whenever it is asked for."""
        for start in range(0, self.shape[0], TILE_ROWS):
            yield start, self._tile(start)

    def _tile(self, start: int) -> "Tensor":
        import torch

        parents = range(len(self._updates))
        thinned = torch.stack([self._thinned(parent, start) * self._scales[parent] for parent in parents])
        weights = torch.tensor(self._weights)[:, None, None]
        weighted = thinned * weights
        added = weighted != 0
        if self._parameters.method in _BY_SIGN:
            added &= weighted.sign() == weighted.sum(0).sign()
        total = (weighted * added).sum(0)
        if not self._parameters.normalize:
            return total
        divisor = (weights * added).sum(0)
        return total / torch.where(divisor.abs() < 1e-8, 1.0, divisor)

    def _rows(self, update: Factors, start: int) -> "Tensor":
        return update.b[start : start + TILE_ROWS] @ update.a

    def _thinned(self, parent: int, start: int) -> "Tensor":
        """What is left of some rows of a parent's update."""
        import torch

        p, rows = self._parameters, self._rows(self._updates[parent], start)
        if p.method in ("ties", "breadcrumbs"):
            least, most = self._bounds[parent]
            return rows * ((rows.abs() >= least) & (rows.abs() <= most))
        random = _random(p.seed, self._name, f"{parent}/{start}")
        chance = torch.full_like(rows, p.density)
        if p.method == "della":
            places = rows.abs().argsort(dim=1).argsort(dim=1) / max(1, rows.shape[1] - 1)
            chance = (p.density + p.epsilon * (2 * places - 1)).clamp(1e-6, 1.0)
        kept = rows * (torch.rand(rows.shape, generator=random) < chance)
        return kept if p.method != "della" and p.rescale == "l1" else kept / chance

    def _l1_scale(self, parent: int) -> float:
        """What brings a thinned update back to its sum of magnitudes; 1 where it is scaled otherwise."""
        if not (self._parameters.method.startswith("dare") and self._parameters.rescale == "l1"):
            return 1.0
        starts = range(0, self.shape[0], TILE_ROWS)
        before = sum(float(self._rows(self._updates[parent], start).abs().sum()) for start in starts)
        after = sum(float(self._thinned(parent, start).abs().sum()) for start in starts)
        return before / after if after else 1.0

    def _magnitudes(self, update: Factors) -> tuple[float, float]:
        """The smallest and the largest magnitude that stay."""
        p, count = self._parameters, self.shape[0] * self.shape[1]
        if p.method == "ties":
            return self._kth_largest(update, max(1, int(p.density * count))), float("inf")
        if p.method == "breadcrumbs":
            dropped = int(p.gamma * count)
            kept = min(count - dropped, max(1, int(p.density * count)))
            most = self._kth_largest(update, dropped + 1)
            return self._kth_largest(update, dropped + kept), most
        return 0.0, float("inf")

    def _kth_largest(self, update: Factors, k: int) -> float:
        """The k-th largest magnitude, or a little less: no more than a 2^-30th of the largest."""
        import torch

        starts = range(0, self.shape[0], TILE_ROWS)
        low, high = 0.0, max(float(self._rows(update, start).abs().max()) for start in starts)
        above = 0  # numbers of at least `high`, but for the first round
        for _ in range(_ROUNDS):
            if high <= low:
                break
            counts = sum(torch.histc(self._rows(update, start).abs().double(), _BINS, low, high) for start in starts)
            from_top = counts.flip(0).cumsum(0) + above  # type: ignore[union-attr]
            place = int(torch.searchsorted(from_top, k))
            if place >= _BINS:
                break
            above = int(from_top[place - 1]) if place else above
            step = (high - low) / _BINS
            low, high = high - (place + 1) * step, high - place * step
        return low


def _random(seed: int, *names: str) -> "Generator":
    import torch

    key = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little") >> 1)
