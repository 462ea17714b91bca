"""Shrinks an adapter's intruder dimensions, so that W + Δ resembles W more: Δ' = Δ + (λ − 1) Σ σ u vᵀ over intruders.

(u, σ, v) are the leading singular triplets of W + Δ whose u is an intruder. Δ' is cut back to the rank of Δ by its
factors. Source: https://arxiv.org/abs/2410.21228.
"""

from collections.abc import Mapping
from typing import NamedTuple

from hotshoe.registry.formats.base import BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes.dense_update import require_low_rank
from hotshoe.registry.recipes.factors import Factors, concatenated, inner, truncated
from hotshoe.registry.recipes.spectrum import leading_vectors
from hotshoe.registry.validation import Pause, go_on


class Mitigation(NamedTuple):
    """The corrected updates, of the ranks that they had."""

    updates: Mapping[LinearId, Factors]
    shrunk: int  # intruders
    energy_kept: float  # share of ‖Δ'‖² that cutting back to the rank kept, over the linears that changed


def mitigate(adapter: LoweredAdapter, base: BaseWeights, *, keep: float, pause: Pause = go_on) -> Mitigation:
    """Shrinks every intruder dimension to `keep` (λ) of its strength, 0 to 1.

    Raises:
        InvalidAdapter: the adapter is not of low-rank updates alone; the error names what else it has.
    """
    require_low_rank(adapter, to="have its intruders shrunk")
    updates = {}
    shrunk, kept, total = 0, 0.0, 0.0
    for linear_id, linear in adapter.linears.items():
        pause()
        factors = _factors(linear)
        leading = leading_vectors(base.weight(linear_id), factors.b @ factors.a)
        chosen = leading.intruders
        if not chosen.any():
            updates[linear_id] = factors
            continue
        left, values, right = leading.left[:, chosen], leading.values[chosen], leading.right[:, chosen]
        corrected = concatenated([factors, Factors(right.T.float(), ((keep - 1) * values * left).float())])
        updates[linear_id], share = truncated(corrected, linear.rank)
        size = inner(corrected, corrected)
        shrunk, kept, total = shrunk + int(chosen.sum()), kept + share * size, total + size
    return Mitigation(updates, shrunk, kept / total if total else 1.0)


def _factors(linear: LoweredLinear) -> Factors:
    assert linear.factors is not None, "checked at first"
    return Factors(*linear.factors)
