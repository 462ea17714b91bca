"""Draws the next token of each sequence from its logits.

The order is that of vLLM and transformers: logit bias; repetition, presence and frequency penalties; no end before
min_new_tokens; none but what the request's grammar allows; then, unless greedy, temperature, top-k, top-p, min-p. With
l the logits, p = softmax(l / temperature):

    logit bias            l_t += bias_t
    repetition_penalty r  l_t ← l_t / r if l_t > 0 else l_t · r    for t in the prompt or in the answer so far
    frequency_penalty f   l_t −= f · (how often t is in the answer so far)
    presence_penalty a    l_t −= a                                 for t in the answer so far
    top_k                 the k likeliest tokens; of equal ones, those with lower ids
    top_p                 of what is left, renormalised: the fewest tokens, likeliest first, that together reach top_p
    min_p                 of what is left: tokens at least min_p times as likely as the likeliest

The token is where one uniform number falls in the cumulated probabilities of what is left, likeliest first. That
number depends on (seed, answer index, token position) and on nothing else: neither neighbours nor preemption change it.
"""

import hashlib
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hotshoe.server.engine.request import SamplingParams
from hotshoe.server.model.grammar import GrammarState

CANDIDATES = 256  # likeliest tokens looked at first: sorting a whole vocabulary costs thirty times as much
MORE_CANDIDATES = 4096  # looked at next, for rows that are so flat that those do not decide


class SamplingState:
    """What the next token of one sequence depends on beside its logits: parameters, and the tokens so far."""

    __slots__ = ("_ending_ids", "_grammar", "_seen", "answer_index", "counts", "min_new_tokens", "params", "position")

    def __init__(
        self,
        params: SamplingParams,
        *,
        prompt: Sequence[int] = (),
        answer_index: int = 0,
        ending_ids: Sequence[int] = (),
        min_new_tokens: int = 0,
        grammar: GrammarState | None = None,
    ) -> None:
        self.params = params
        self._grammar = grammar
        self.answer_index = answer_index
        self.position = 0  # tokens drawn so far
        self.min_new_tokens = min_new_tokens
        self.counts: dict[int, int] = {}  # of the answer's tokens
        self._ending_ids = list(ending_ids)
        self._seen = dict.fromkeys(prompt) if params.repetition_penalty != 1.0 else {}

    def add(self, token_id: int) -> None:
        """Takes note of a drawn token."""
        self.position += 1
        self.counts[token_id] = self.counts.get(token_id, 0) + 1
        if self.params.repetition_penalty != 1.0:
            self._seen[token_id] = None

    @property
    def edits_logits(self) -> bool:
        """Whether `edit` would change anything now."""
        p = self.params
        penalized = p.repetition_penalty != 1.0 or p.presence_penalty != 0.0 or p.frequency_penalty != 0.0
        return penalized or bool(p.logit_bias) or self._may_not_end or self._grammar is not None

    @property
    def _may_not_end(self) -> bool:
        return self.position < self.min_new_tokens and bool(self._ending_ids)

    def edit(self, logits: Tensor) -> None:
        """Applies bias, penalties, the ban on ending and the grammar to logits [vocab_size] float32, in place."""
        p = self.params
        if p.logit_bias:
            logits[_ids(p.logit_bias, logits)] += _values(p.logit_bias.values(), logits)
        if self._seen:
            seen = _ids(self._seen, logits)
            value = logits[seen]
            logits[seen] = torch.where(value > 0, value / p.repetition_penalty, value * p.repetition_penalty)
        if self.counts and (p.presence_penalty or p.frequency_penalty):
            penalty = p.presence_penalty + p.frequency_penalty * _values(self.counts.values(), logits)
            logits[_ids(self.counts, logits)] -= penalty
        banned = self._ending_ids if self._may_not_end else ()
        if self._grammar is not None:
            allowed = self._grammar.allowed(len(logits), banned=banned)
            logits.masked_fill_(~allowed.to(logits.device), float("-inf"))
        elif banned:
            logits[_ids(banned, logits)] = float("-inf")


def sample(logits: Tensor, states: Sequence[SamplingState]) -> list[int]:
    """Draws one token per row.

    Args:
        logits: [len(states), vocab_size] float32, finite; unchanged.
        states: one per row; not advanced.
    """
    if any(state.edits_logits for state in states):
        logits = logits.clone()
        for row, state in zip(logits, states, strict=True):
            if state.edits_logits:
                state.edit(row)
    drawn = [row for row, state in enumerate(states) if not state.params.greedy]
    if len(drawn) == len(states):
        return _draw(logits, states)
    tokens: list[int] = logits.argmax(dim=-1).tolist()
    if drawn:
        for row, token in zip(drawn, _draw(logits[drawn], [states[row] for row in drawn]), strict=True):
            tokens[row] = token
    return tokens


def uniform(seed: int, answer_index: int, position: int) -> float:
    """The number in [0, 1) that decides the token at `position` of an answer."""
    key = struct.pack("<QQQ", seed % 2**64, answer_index, position)
    word = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return (word >> 11) * 2.0**-53


def _draw(logits: Tensor, states: Sequence[SamplingState]) -> list[int]:
    """Draws from the filtered distribution of each row, looking beyond the likeliest candidates only where it must."""
    top = logits.topk(min(CANDIDATES, logits.shape[-1]), dim=-1)
    temperatures = torch.tensor([s.params.temperature for s in states], dtype=torch.float32, device=logits.device)
    totals = ((logits - top.values[:, :1]) / temperatures[:, None]).exp().sum(dim=-1).tolist()
    tokens = []
    for row, state in enumerate(states):
        head = _sorted_head(top.values[row], top.indices[row], vocab_size=logits.shape[-1])
        token = head.pick(state, totals[row])
        tokens.append(_draw_further(logits[row], state, totals[row]) if token is None else token)
    return tokens


def _draw_further(row: Tensor, state: SamplingState, total: float) -> int:
    """Draws from a row [vocab_size] whose likeliest candidates do not decide."""
    if MORE_CANDIDATES < len(row):
        top = row.topk(MORE_CANDIDATES)
        token = _sorted_head(top.values, top.indices, vocab_size=len(row)).pick(state, total)
        if token is not None:
            return token
    whole = row.sort(descending=True, stable=True)
    values, ids = whole.values.cpu().numpy(), whole.indices.cpu().numpy()
    count = np.count_nonzero(values > -np.inf)
    token = _Head(values[:count], ids[:count], whole=True).pick(state, total)
    assert token is not None, "the whole row always decides"
    return token


@dataclass(frozen=True, slots=True)
class _Head:
    """The likeliest tokens of a row, as a stable descending sort of the whole row begins."""

    values: NDArray[np.float32]  # [n] logits
    ids: NDArray[np.int64]  # [n]
    whole: bool  # nothing else in the row is possible

    def pick(self, state: SamplingState, total: float) -> int | None:
        """The token of the filtered distribution where the state's number falls; None if it may lie past this head.

        Args:
            total: sum over the whole row of exp((logit − largest logit) / temperature).
        """
        p = state.params
        values, whole = self.values.astype(np.float64), self.whole
        if 0 < p.top_k <= len(values):
            values, whole = values[: p.top_k], True
        if len(values) == 0 or (p.top_k and not whole):
            return None
        cumulated = np.exp((values - values[0]) / p.temperature).cumsum()
        total = cumulated[-1] if whole else total
        kept = len(values) + 1  # past this head, unless a filter cuts within it
        if p.top_p < 1.0:
            kept = int(np.searchsorted(cumulated, p.top_p * total)) + 1
        if p.min_p > 0.0:
            likely = int(np.count_nonzero(values >= values[0] + p.temperature * math.log(p.min_p)))
            kept = min(kept, likely) if likely < len(values) else kept
        if kept > len(values) and not whole and (p.top_p < 1.0 or p.min_p > 0.0):
            return None
        cut = cumulated[:kept]
        mass = cut[-1] if kept <= len(values) else total
        index = int(np.searchsorted(cut, uniform(p.seed, state.answer_index, state.position) * mass, side="right"))
        if index < len(cut):
            return int(self.ids[index])
        return int(self.ids[len(cut) - 1]) if whole else None


def _sorted_head(top_values: Tensor, top_ids: Tensor, *, vocab_size: int) -> _Head:
    """Candidates in descending order made a head: equal logits by ascending id.

    Tokens as likely as the last candidate may be missing, so unless all are there, those are left out. Impossible ones
    always are.
    """
    values, ids = top_values.cpu().numpy(), top_ids.cpu().numpy()
    whole = len(values) == vocab_size or values[-1] == -np.inf
    count = len(values)
    if not whole:
        count = int(np.count_nonzero(values > values[-1]))
    elif values[-1] == -np.inf:  # a ban, or a grammar
        count = int(np.count_nonzero(values > -np.inf))
    values, ids = values[:count], ids[:count]
    if (values[1:] == values[:-1]).any():
        order = np.lexsort((ids, -values))
        values, ids = values[order], ids[order]
    return _Head(values, ids, whole)


def _ids(tokens: Iterable[int], like: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.int64, device=like.device)


def _values(values: Iterable[float], like: Tensor) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32, device=like.device)
