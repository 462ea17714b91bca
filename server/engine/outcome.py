"""What a step's logits say, chunk by chunk: the next token, log-probabilities, or that the numbers are unusable."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hotshoe.server.engine.logprobs import token_logprobs
from hotshoe.server.engine.request import TokenLogprob
from hotshoe.server.engine.sampler import sample
from hotshoe.server.engine.scheduler import Chunk


@dataclass(slots=True)
class Outcome:
    """Of one chunk."""

    finite: bool
    token_id: int | None = None  # the next token, if the chunk draws one
    logprob: TokenLogprob | None = None  # its log-probability, if the request asked
    known_logprobs: list[TokenLogprob] = field(default_factory=list)  # of given tokens: the prompt's, or the choice's


@torch.inference_mode()
def read_logits(chunks: Sequence[Chunk], logits: Tensor) -> list[Outcome]:
    """Draws tokens and takes log-probabilities.

    Args:
        chunks: in the order of their rows of logits; their sequences are not changed.
        logits: [sum of num_logits, vocab_size] float32.
    """
    finite = _finite_rows(logits)
    outcomes = []
    draws: list[tuple[int, int]] = []  # (row of logits, chunk)
    row = 0
    for index, chunk in enumerate(chunks):
        end = row + chunk.num_logits
        outcome = Outcome(finite=all(finite[row:end]))
        outcomes.append(outcome)
        if outcome.finite:
            outcome.known_logprobs = _known_logprobs(chunk, logits[row:end])
            if chunk.draws:
                draws.append((end - 1, index))
        row = end
    _draw(chunks, logits, draws, outcomes)
    return outcomes


def _finite_rows(logits: Tensor) -> list[bool]:
    """Per row, whether all of it is finite. Sums first, which is cheap; a sum may overflow where no number does."""
    finite: list[bool] = logits.sum(dim=-1).isfinite().tolist()
    return [fine or bool(logits[row].isfinite().all()) for row, fine in enumerate(finite)]


def _draw(
    chunks: Sequence[Chunk], logits: Tensor, draws: Sequence[tuple[int, int]], outcomes: Sequence[Outcome]
) -> None:
    if not draws:
        return
    rows = [row for row, _ in draws]
    selected = logits if len(rows) == logits.shape[0] else logits[rows]
    sequences = [chunks[index].sequence for _, index in draws]
    tokens = sample(selected, [sequence.sampling for sequence in sequences])
    for (_, index), token in zip(draws, tokens, strict=True):
        outcomes[index].token_id = token
    asked = [i for i, sequence in enumerate(sequences) if sequence.request.logprobs is not None]
    if not asked:
        return
    counts = [sequences[i].request.logprobs or 0 for i in asked]
    logprobs = token_logprobs(selected[asked], [tokens[i] for i in asked], counts)
    for i, logprob in zip(asked, logprobs, strict=True):
        outcomes[draws[i][1]].logprob = logprob


def _known_logprobs(chunk: Chunk, logits: Tensor) -> list[TokenLogprob]:
    """Log-probabilities of the given tokens that follow the chunk's rows with logits, as far as they are wanted."""
    sequence = chunk.sequence
    first = max(sequence.first_logit_position, chunk.end - chunk.num_logits)
    last = sequence.virtual_tokens + (len(sequence.tokens) if sequence.scores else sequence.num_prompt) - 1
    if first >= min(chunk.end, last):
        return []
    start, end = int(first), min(chunk.end, last)  # the position p is followed by the token of p + 1
    rows = logits[start - (chunk.end - chunk.num_logits) : end - (chunk.end - chunk.num_logits)]
    request = sequence.request
    count = (request.logprobs if sequence.scores else request.prompt_logprobs) or 0
    return token_logprobs(rows, sequence.tokens_at(start + 1, end + 1), [count] * (end - start))
