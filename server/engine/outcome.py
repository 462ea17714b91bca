"""What a step's logits say, chunk by chunk: the next token, log-probabilities, or that the numbers are unusable."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hotshoe.server.engine.logprobs import token_logprobs
from hotshoe.server.engine.request import TokenLogprob
from hotshoe.server.engine.runner import StepResult
from hotshoe.server.engine.sampler import SamplingState, sample
from hotshoe.server.engine.step_plan import Chunk
from hotshoe.server.model.grammar import advance


@dataclass(slots=True)
class Outcome:
    """Of one chunk."""

    finite: bool
    token_id: int | None = None  # the next token, if the chunk draws one
    logprob: TokenLogprob | None = None  # its log-probability, if the request asked
    known_logprobs: list[TokenLogprob] = field(default_factory=list)  # of given tokens: the prompt's, or the choice's


@torch.inference_mode()
def read_result(chunks: Sequence[Chunk], result: StepResult) -> list[Outcome]:
    """Draws tokens and takes log-probabilities.

    Args:
        chunks: in the order of their rows of logits; their sequences are not changed.
    """
    logits, drawn = result.logits, result.draws
    finite = _finite_rows(logits) if drawn is None else [draw.finite for draw in drawn]
    outcomes = []
    wanted: list[tuple[int, int]] = []  # (row of logits, chunk) of those that draw
    row = 0
    for index, chunk in enumerate(chunks):
        end = row + chunk.num_logits
        outcome = Outcome(finite=all(finite[row:end]))
        outcomes.append(outcome)
        if outcome.finite:
            outcome.known_logprobs = _known_logprobs(chunk, logits[row:end])
            if chunk.draws:
                wanted.append((end - 1, index))
        row = end
    _draw(chunks, result, wanted, outcomes)
    return outcomes


def advance_grammars(chunks: Sequence[Chunk], outcomes: Sequence[Outcome]) -> None:
    """Has the grammars of those that go on take note of the tokens that were drawn, all in one call."""
    moves = []
    for chunk, outcome in zip(chunks, outcomes, strict=True):
        grammar, token = chunk.sequence.grammar, outcome.token_id
        if grammar is not None and token is not None and token not in chunk.sequence.ending_ids:
            moves.append((grammar, token))
    if moves:
        advance(moves)


def _finite_rows(logits: Tensor) -> list[bool]:
    """Per row, whether all of it is finite. Sums first, which is cheap; a sum may overflow where no number does."""
    finite: list[bool] = logits.sum(dim=-1).isfinite().tolist()
    return [fine or bool(logits[row].isfinite().all()) for row, fine in enumerate(finite)]


def _draw(
    chunks: Sequence[Chunk], result: StepResult, wanted: Sequence[tuple[int, int]], outcomes: Sequence[Outcome]
) -> None:
    """Gives the outcomes of `wanted` (row of logits, chunk) their tokens, and log-probabilities if they are asked."""
    sequences = {row: chunks[index].sequence for row, index in wanted}
    drawn = {row: _device_token(result, row, sequence.sampling) for row, sequence in sequences.items()}
    tokens = {row: token for row, token in drawn.items() if token is not None}
    left = [row for row in sequences if row not in tokens]
    if left:
        selected = result.logits if len(left) == result.logits.shape[0] else result.logits[left]
        tokens |= zip(left, sample(selected, [sequences[row].sampling for row in left]), strict=True)
    for row, index in wanted:
        outcomes[index].token_id = tokens[row]
    asked = [(row, index) for row, index in wanted if sequences[row].request.logprobs is not None]
    if not asked:
        return
    rows = [row for row, _ in asked]
    counts = [sequences[row].request.logprobs or 0 for row in rows]
    logprobs = token_logprobs(result.logits[rows], [tokens[row] for row in rows], counts)
    for (_, index), logprob in zip(asked, logprobs, strict=True):
        outcomes[index].logprob = logprob


def _device_token(result: StepResult, row: int, state: SamplingState) -> int | None:
    """The token that the device drew; None where it did not, or where the logits are to be edited first."""
    if result.draws is None or state.edits_logits:
        return None
    return result.draws[row].greedy if state.params.greedy else result.draws[row].drawn


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
