"""What a stored form of W + Δ keeps of Δ. NF4 keeps little of an ordinary update: W lies on its grid already."""

import math
from bisect import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

# ‖Δ‖ / ‖W‖ and the share of Δ that NF4 with nested scales keeps of it, measured on normal weights.
_NF4_KEEPS = ((0.005, 0.01), (0.02, 0.02), (0.05, 0.28), (0.10, 0.84), (0.20, 0.99), (0.50, 1.0))


class Kept(NamedTuple):
    """With E = stored − W: `share` is ⟨Δ, E⟩ / ‖Δ‖², 1 if nothing is lost; `error` is ‖E − Δ‖ / ‖Δ‖."""

    share: float
    error: float


@dataclass(slots=True)
class KeptSums:
    """What is kept of the updates of many linears together."""

    product: float = 0.0  # Σ ⟨Δ, E⟩
    error: float = 0.0  # Σ ‖E − Δ‖²
    size: float = 0.0  # Σ ‖Δ‖²

    def add(self, weight: "Tensor", update: "Tensor", stored: "Tensor") -> None:
        """Compares what is stored with W + Δ; all [out_features, in_features]."""
        weight, update = weight.double(), update.double()
        effect = stored.double() - weight
        self.product += float((update * effect).sum())
        self.error += float((effect - update).square().sum())
        self.size += float(update.square().sum())

    @property
    def kept(self) -> Kept:
        """Nothing is lost of Δ = 0."""
        return Kept(self.product / self.size, math.sqrt(self.error / self.size)) if self.size else Kept(1.0, 0.0)


def kept(weight: "Tensor", update: "Tensor", stored: "Tensor") -> Kept:
    """Compares what is stored with W + Δ; all [out_features, in_features]."""
    sums = KeptSums()
    sums.add(weight, update, stored)
    return sums.kept


def nf4_share(relative_norm: float) -> float:
    """An estimate of `Kept.share` for W + Δ quantized to NF4 again, from ‖Δ‖ / ‖W‖ alone."""
    sizes = [size for size, _ in _NF4_KEEPS]
    place = bisect(sizes, relative_norm)
    if place in (0, len(sizes)):
        return _NF4_KEEPS[max(0, place - 1)][1]
    (low, kept_low), (high, kept_high) = _NF4_KEEPS[place - 1 : place + 1]
    return kept_low + (kept_high - kept_low) * math.log(relative_norm / low) / math.log(high / low)
