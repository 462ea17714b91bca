"""Rows of the embedding and of the output head that a sequence's adapters put in place of the base's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hotshoe.registry.formats.lowered import TokenRows

WeightedRows = Sequence[tuple[TokenRows, float]]


def combined_rows(replaced: WeightedRows) -> tuple[Tensor, Tensor]:
    """The tokens of all adapters, [n] ascending, and their rows [n, hidden_size]: base + Σ cᵢ (rowᵢ − base)."""
    if len(replaced) == 1 and replaced[0][1] == 1.0:
        return replaced[0][0].token_ids, replaced[0][0].rows
    token_ids = torch.cat([rows.token_ids for rows, _ in replaced]).unique()
    combined = torch.empty(len(token_ids), replaced[0][0].base.shape[1], device=token_ids.device)
    for rows, _ in replaced:
        combined[torch.searchsorted(token_ids, rows.token_ids)] = rows.base
    for rows, weight in replaced:
        combined.index_add_(0, torch.searchsorted(token_ids, rows.token_ids), weight * (rows.rows - rows.base))
    return token_ids, combined


def found_rows(token_ids: Sequence[int], replaced: WeightedRows) -> tuple[list[int], Tensor]:
    """Where replaced tokens stand among `token_ids`, and their rows [found, hidden_size]."""
    known, rows = combined_rows(replaced)
    wanted = torch.tensor(token_ids)
    places = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
    found = (known[places] == wanted).nonzero()[:, 0]
    return found.tolist(), rows[places[found]]
