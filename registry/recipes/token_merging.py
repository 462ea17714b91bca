"""New low-rank updates of the embedding and of the output head: Σ cᵢ Δᵢ of each, with the coefficients of `linear`."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hotshoe.registry.formats.lowered import LoweredAdapter, TokenFactors
from hotshoe.registry.formats.target_modules import EMBEDDING, HEAD
from hotshoe.registry.recipes.factors import Factors, concatenated, inner, truncated
from hotshoe.registry.recipes.merge_parameters import MergeParameters


class TokenMerge(NamedTuple):
    """The merged updates, [vocab_size, hidden_size] each."""

    updates: Mapping[str, Factors]  # by module, of `EMBEDDING` and `HEAD`
    kept: float  # ‖Δ‖² that cutting to a rank left of `size`
    size: float  # ‖Δ‖², both together


def merge_tokens(
    adapters: Sequence[LoweredAdapter], weights: Sequence[float], parameters: MergeParameters
) -> TokenMerge:
    """Merges these parts of adapters; where none has any, there is nothing."""
    shares = parameters.shares(weights)
    of_module = {
        EMBEDDING: [adapter.embedding_update for adapter in adapters],
        HEAD: [adapter.head_update for adapter in adapters],
    }
    updates, kept, size = {}, 0.0, 0.0
    for module, parts in of_module.items():
        found = [_scaled(part, share) for part, share in zip(parts, shares, strict=True) if part is not None]
        if not found:
            continue
        whole = concatenated(found)
        own, share = inner(whole, whole), 1.0
        if parameters.rank and whole.a.shape[0] > parameters.rank:
            whole, share = truncated(whole, parameters.rank)
        updates[module] = whole
        kept, size = kept + share * own, size + own
    return TokenMerge(updates, kept, size)


def _scaled(part: TokenFactors, share: float) -> Factors:
    return Factors(part.directions, part.rows * share)
