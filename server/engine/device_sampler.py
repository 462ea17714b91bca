"""Draws tokens on the device, as `sampler` defines it; what it leaves undecided is drawn there.

A row's numbers go over with the step, as "riders" beside its logits, the uniform number among them: it is computed on
the host, from the request's seed, so that neighbours, buckets and devices cannot change it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.server.engine.sampler import CANDIDATES, uniform
from hotshoe.server.engine.step_plan import Chunk

NUM_RIDERS = 5  # temperature, top_k, top_p, temperature · log(min_p), uniform
_IDLE = (1.0, 0.0, 1.0, -math.inf, 0.0)


class Draw(NamedTuple):
    """What the device says of a row of logits."""

    finite: bool
    greedy: int  # the likeliest token
    drawn: int | None  # the token where the uniform number falls; None if the likeliest candidates do not decide


def sampling_riders(chunks: Sequence[Chunk]) -> NDArray[np.float64]:
    """[sum of num_logits, NUM_RIDERS]: what each chunk's last row is drawn by, if it draws."""
    rows = []
    for chunk in chunks:
        rows += [_IDLE] * (chunk.num_logits - 1)
        state = chunk.sequence.sampling
        p = state.params
        if not chunk.draws or p.greedy:
            rows.append(_IDLE)
            continue
        least = p.temperature * math.log(p.min_p) if p.min_p > 0.0 else -math.inf
        number = uniform(p.seed, state.answer_index, state.position)
        rows.append((p.temperature, float(p.top_k), p.top_p, least, number))
    return np.array(rows, np.float64).reshape(len(rows), NUM_RIDERS)


def draw_rows(logits: Tensor, riders: Tensor, *, drawn: bool) -> list[Draw]:
    """Reads logits [rows, vocab_size] on the device; waits for it.

    Args:
        riders: of `sampling_riders`, on the device.
        drawn: whether any row is drawn; else all are greedy.
    """
    from hotshoe.kernels.triton.logit_stats import logit_stats

    greedy, finite, totals = logit_stats(logits, riders[:, 0].float())
    tokens = draw_candidates(logits, totals, riders) if drawn else torch.full_like(greedy, -1)
    found = torch.stack((finite, greedy, tokens.int()), dim=1).tolist()
    return [Draw(bool(fine), likeliest, None if token < 0 else token) for fine, likeliest, token in found]


def warm_up(vocab_size: int, device: torch.device) -> None:
    """Compiles and loads what drawing launches, so that the first request does not wait for it."""
    from hotshoe.kernels.triton.logit_stats import logit_stats

    logits, riders = torch.zeros(1, vocab_size, device=device), torch.tensor([_IDLE], dtype=torch.float64).to(device)
    draw_candidates(logits, logit_stats(logits, riders[:, 0].float())[2], riders)


def draw_candidates(logits: Tensor, totals: Tensor, riders: Tensor) -> Tensor:
    """[rows] int64: `sampler`'s choice among each row's likeliest candidates, -1 where they do not decide.

    Args:
        totals: [rows], of each row Σ exp((logit − largest logit) / temperature).
    """
    temperature, top_k, top_p, least, number = riders.unbind(1)
    values, ids, count = _candidates(logits)
    complete = values.shape[1] == logits.shape[1]
    place = torch.arange(values.shape[1], device=logits.device)
    limited = (top_k > 0) & (top_k <= count)
    count = torch.where(limited, top_k.long(), count)
    whole = limited | complete
    undecided = (count == 0) | ((top_k > 0) & ~whole)
    inside = place < count[:, None]
    weights = ((values - values[:, :1]) / temperature[:, None]).exp().masked_fill(~inside, 0.0)
    cumulated = weights.cumsum(1)
    total = torch.where(whole, cumulated[:, -1], totals.double())
    kept = count + 1  # past the candidates, unless a filter cuts within them
    reached = ((cumulated < (top_p * total)[:, None]) & inside).sum(1) + 1
    kept = torch.where(top_p < 1.0, reached, kept)
    likely = ((values >= values[:, :1] + least[:, None]) & inside).sum(1)
    kept = torch.where((least > -math.inf) & (likely < count), torch.minimum(kept, likely), kept)
    filtered = (top_p < 1.0) | (least > -math.inf)
    undecided |= (kept > count) & ~whole & filtered
    last = (torch.minimum(kept, count) - 1).clamp(min=0)
    mass = torch.where(kept <= count, cumulated.gather(1, last[:, None])[:, 0], total)
    index = ((cumulated <= (number * mass)[:, None]) & (place <= last[:, None])).sum(1)
    undecided |= (index > last) & ~whole
    token = ids.gather(1, torch.minimum(index, last)[:, None])[:, 0]
    return torch.where(undecided, -1, token)


def _candidates(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's likeliest tokens in order, of equal ones the lower id first: logits in float64, ids, and how many.

    Tokens as likely as the last candidate may be missing, so unless all are there, those are left out.
    """
    top = logits.topk(min(CANDIDATES, logits.shape[1]), dim=1)
    ids, order = top.indices.sort(dim=1)
    values, order = top.values.gather(1, order).sort(dim=1, descending=True, stable=True)
    ids = ids.gather(1, order)
    if values.shape[1] == logits.shape[1]:
        count = torch.full((values.shape[0],), values.shape[1], device=logits.device)
    else:
        count = (values > values[:, -1:]).sum(1)
    return values.double(), ids, count
