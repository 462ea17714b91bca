"""Rows of the embedding and of the output head that a sequence's adapters put in place of the base's."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hotshoe.registry.formats.lowered import TokenRows


class CombinedRows(NamedTuple):
    """What stands in place of some tokens' rows."""

    token_ids: Tensor  # [n] int64, ascending
    rows: Tensor  # [n, hidden_size] float32


def combined_rows(replaced: Sequence[tuple[TokenRows, float]]) -> CombinedRows | None:
    """The tokens of all adapters of a stack, and base + Σ cᵢ (rowᵢ − base); None if there are none."""
    if not replaced:
        return None
    if len(replaced) == 1 and replaced[0][1] == 1.0:
        return CombinedRows(replaced[0][0].token_ids, replaced[0][0].rows)
    token_ids = torch.cat([rows.token_ids for rows, _ in replaced]).unique()
    combined = torch.empty(len(token_ids), replaced[0][0].base.shape[1], device=token_ids.device)
    for rows, _ in replaced:
        combined[torch.searchsorted(token_ids, rows.token_ids)] = rows.base
    for rows, weight in replaced:
        combined.index_add_(0, torch.searchsorted(token_ids, rows.token_ids), weight * (rows.rows - rows.base))
    return CombinedRows(token_ids, combined)


def found_rows(token_ids: Sequence[int], replaced: CombinedRows) -> tuple[list[int], Tensor]:
    """Where replaced tokens stand among `token_ids`, and their rows [found, hidden_size]."""
    wanted = torch.tensor(token_ids)
    places = torch.searchsorted(replaced.token_ids, wanted).clamp_(max=len(replaced.token_ids) - 1)
    found = (replaced.token_ids[places] == wanted).nonzero()[:, 0]
    return found.tolist(), replaced.rows[places[found]]
