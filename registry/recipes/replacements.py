"""What adapters have beside updates of weights, merged: biases, norms' weights, and rows of embedding and head.

Each is b + Σ cᵢ (tᵢ − b) around the base's own b, with the coefficients cᵢ of `linear`, as a stack of the adapters
computes it; what an adapter leaves alone is the base's. A token to which two adapters give different rows is a
conflict: the mean of two meanings is neither. It is refused, unless rows=linear says to add them up all the same.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, LinearId, NormId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear, TokenRows
from hotshoe.registry.recipes.merge_parameters import MergeParameters

if TYPE_CHECKING:
    from torch import Tensor

_NONE = LoweredLinear()
_NAMED = 5  # tokens, in an error


class Replacements(NamedTuple):
    """Merged, float32."""

    biases: "Mapping[LinearId, Tensor]"  # [out_features], the effective bias less the base's
    norms: "Mapping[NormId, Tensor]"  # [size], the weights less the base's
    embedding_rows: TokenRows | None
    head_rows: TokenRows | None

    @property
    def rows_are_tied(self) -> bool:
        """Whether the head's rows are the embedding's."""
        import torch

        one, other = self.embedding_rows, self.head_rows
        if one is None or other is None:
            return one is other
        return torch.equal(one.token_ids, other.token_ids) and torch.equal(one.rows, other.rows)


def merge_replacements(
    adapters: Sequence[LoweredAdapter], weights: Sequence[float], parameters: MergeParameters, base: BaseShape
) -> Replacements:
    """Merges these parts of adapters.

    Raises:
        InvalidAdapter: tokens have different rows in two adapters.
    """
    weighted = list(zip(adapters, parameters.shares(weights), strict=True))
    biases, norms = {}, {}
    for linear in base.linears:
        parts = [(adapter.linears.get(linear, _NONE).bias_delta, share) for adapter, share in weighted]
        if (bias := _sum(parts)) is not None:
            biases[linear] = bias
    for norm in base.norms:
        if (added := _sum([(adapter.norms.get(norm), share) for adapter, share in weighted])) is not None:
            norms[norm] = added
    embedding = [(adapter.embedding_rows, share) for adapter, share in weighted]
    head = [(adapter.head_rows, share) for adapter, share in weighted]
    return Replacements(
        biases,
        norms,
        _merged_rows(embedding, parameters.rows, of="embedding"),
        _merged_rows(head, parameters.rows, of="output head"),
    )


def _sum(parts: "Sequence[tuple[Tensor | None, float]]") -> "Tensor | None":
    """Σ share · part, float32; None if there is no part."""
    terms = [share * part.double() for part, share in parts if part is not None]
    return sum(terms[1:], start=terms[0]).float() if terms else None


def _merged_rows(parts: Sequence[tuple[TokenRows | None, float]], rule: str, *, of: str) -> TokenRows | None:
    """The rows of all tokens that any part has; None if there are none."""
    import torch

    found = [(part, share) for part, share in parts if part is not None]
    if not found:
        return None
    token_ids = torch.tensor(sorted({token for part, _ in found for token in part.token_ids.tolist()}))
    base = torch.empty(len(token_ids), found[0][0].rows.shape[1])
    latest, added = torch.empty_like(base), torch.zeros_like(base, dtype=torch.float64)
    is_taken, is_disputed = (torch.zeros(len(token_ids), dtype=torch.bool) for _ in range(2))
    for part, share in found:
        places = torch.searchsorted(token_ids, part.token_ids)
        is_disputed[places] |= is_taken[places] & (latest[places] != part.rows).any(1)
        is_taken[places] = True
        latest[places], base[places] = part.rows, part.base
        added[places] += share * (part.rows.double() - part.base.double())
    if rule == "distinct" and is_disputed.any():
        tokens = token_ids[is_disputed].tolist()
        named = ", ".join(map(str, tokens[:_NAMED])) + (", …" if len(tokens) > _NAMED else "")
        raise InvalidAdapter(
            "sources",
            f"give different rows of the {of} to the same tokens: {named}; the parameter rows=linear adds them up",
        )
    return TokenRows(token_ids, (base.double() + added).float(), base)
