"""A new low-rank update from updates of any form: Σ cᵢ Δᵢ as one dense matrix, with the coefficients of `linear`, of
which the nearest of a rank is kept. A rotation of W, or a scale of its inputs, has no low rank of its own."""

from collections.abc import Sequence

from hotshoe.registry.formats.base import BaseWeights
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.principal_factors import principal_factors
from hotshoe.registry.recipes.dense_update import dense_update
from hotshoe.registry.recipes.factors import Factors
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.recipes.merging import Merge
from hotshoe.registry.validation import Pause, go_on


def merge_full(
    adapters: Sequence[LoweredAdapter],
    weights: Sequence[float],
    parameters: MergeParameters,
    base: BaseWeights,
    *,
    pause: Pause = go_on,
) -> Merge:
    """Merges the updates of adapters of `Subject.FULL_UPDATES`; `pause` is called before each linear."""
    shares = parameters.shares(weights)
    updates, kept, total = {}, 0.0, 0.0
    for linear in base.shape.linears:
        changed = [(one.linears[linear], c) for one, c in zip(adapters, shares, strict=True) if linear in one.linears]
        if not changed:
            continue
        pause()
        weight = base.weight(linear)
        dense = [(dense_update(part, weight), c) for part, c in changed]
        terms = [c * update.double() for update, c in dense if update is not None]
        if not terms:  # biases only
            continue
        factors = principal_factors(sum(terms[1:], start=terms[0]))
        size, rank = float(factors.squares.sum()), min(parameters.rank, len(factors.squares))
        updates[linear] = Factors(*factors.cut(rank))
        kept, total = kept + factors.energy(rank) * size, total + size
    return Merge(updates, kept / total if total else 1.0, total)
