"""Takes over what a step computed: tokens to their sequences, outputs and failures to the requests they are for."""

import logging
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

from hotshoe.server.engine.live_requests import LiveRequests, new_output
from hotshoe.server.engine.outcome import Outcome
from hotshoe.server.engine.request import AnswerOutput, FinishReason, RequestTimes
from hotshoe.server.engine.scheduler import Scheduler
from hotshoe.server.engine.sequence import Sequence, SequenceStatus
from hotshoe.server.engine.step_plan import Chunk, StepPlan
from hotshoe.server.errors import AdapterUnusable, InvalidRequest

if TYPE_CHECKING:
    from hotshoe.server.adapters.residency import AdapterResidency

logger = logging.getLogger(__name__)


class Committer:
    """Belongs to the engine's thread. A request that fails takes nobody with it but its other answers."""

    def __init__(self, scheduler: Scheduler, live: LiveRequests, residency: "AdapterResidency") -> None:
        self._scheduler = scheduler
        self._live = live
        self._residency = residency

    def drop_unstartable(self, plan: StepPlan) -> list[AnswerOutput]:
        """Fails the requests that a plan found can never start, before it is run."""
        outputs: list[AnswerOutput] = []
        for sequence, error in plan.failed:
            outputs += self._live.fail(sequence.request.request_id, error)
        if plan.failed:  # a sibling of a failed answer may be in the plan
            plan.chunks = [chunk for chunk in plan.chunks if chunk.sequence.status is SequenceStatus.RUNNING]
            plan.tail_copies = [c for c in plan.tail_copies if c.sequence.status is SequenceStatus.RUNNING]
            plan.prefix_writes = [w for w in plan.prefix_writes if w.sequence.status is SequenceStatus.RUNNING]
        return outputs

    def commit(self, chunks: Items[Chunk], outcomes: Items[Outcome], now: float) -> list[AnswerOutput]:
        """Takes over what the chunks' logits said, at `now` in time.monotonic() seconds; gives the outputs."""
        outputs: list[AnswerOutput] = []
        for chunk, outcome in zip(chunks, outcomes, strict=True):
            outputs += self._commit(chunk, outcome, now)
        return outputs

    def _commit(self, chunk: Chunk, outcome: Outcome, now: float) -> list[AnswerOutput]:
        sequence = chunk.sequence
        if sequence.status is not SequenceStatus.RUNNING:  # a sibling failed in this very step
            return []
        if not outcome.finite:
            return self._fail_non_finite(sequence)
        self._scheduler.commit(chunk)
        sequence.known_logprobs += outcome.known_logprobs
        if not chunk.draws and not (sequence.scores and sequence.computed == sequence.target):
            return []
        if sequence.grammar is not None and sequence.grammar.problem:
            error = InvalidRequest("format", f"it became too complex for this answer: {sequence.grammar.problem}")
            return self._live.fail(sequence.request.request_id, error)
        output = new_output(sequence)
        if sequence.first_token is None:
            sequence.first_token = now
            output.times = self._times(sequence)
        if sequence.scores:
            output.token_ids, output.logprobs = sequence.output, list(sequence.known_logprobs)
            output.finish_reason = FinishReason.LENGTH
        else:
            _add_token(sequence, outcome, output)
        if output.finish_reason is not None:
            self._live.finish(sequence)
        return [output]

    def _fail_non_finite(self, sequence: Sequence) -> list[AnswerOutput]:
        """Fails the request whose numbers are not finite, alone; its pages are cleared before anyone gets them."""
        names = ", ".join(f"{use.name}@{use.key}" for use in sequence.request.adapters)
        error: Exception
        if names:
            error = AdapterUnusable(f"the model gave numbers that are not finite with {names}")
            self._quarantine(sequence)
        else:
            error = FloatingPointError("the base model gave numbers that are not finite")
        logger.error("request %s: %s", sequence.request.request_id, error)
        return self._live.fail(sequence.request.request_id, error, soiled=True)

    def _quarantine(self, sequence: Sequence) -> None:
        """Has an adapter refused that spoils answers, if it is sure which one: alone, and at its own weight."""
        if len(sequence.request.adapters) == 1 and sequence.request.adapters[0].weight == 1.0:
            self._residency.quarantine(sequence.adapter_keys[0], "the model gave numbers that are not finite with it")

    def _times(self, sequence: Sequence) -> RequestTimes:
        assert sequence.started is not None and sequence.first_token is not None
        arrival = sequence.request.arrival
        loads = (self._residency.adapter_load_seconds(key, since=arrival) for key in sequence.adapter_keys)
        load = max(loads, default=0.0)
        return RequestTimes(
            queued=sequence.started - arrival, adapter_load=load, first_token=sequence.first_token - arrival
        )


def _add_token(sequence: Sequence, outcome: Outcome, output: AnswerOutput) -> None:
    """Appends a drawn token to its sequence, and to the output with all that belongs to it."""
    token, stopping = outcome.token_id, sequence.request.stopping
    assert token is not None, "a chunk that draws gives a token"
    sequence.append(token)
    output.token_ids = [token]
    if outcome.logprob is not None:
        output.logprobs = [outcome.logprob]
    if sequence.wants_prompt_logprobs:
        output.prompt_logprobs = [None, *sequence.known_logprobs]
        sequence.wants_prompt_logprobs = False
    if token in stopping.stop_token_ids:
        output.finish_reason = FinishReason.STOP
    elif token in sequence.eos_token_ids:
        output.finish_reason = FinishReason.EOS
    elif sequence.grammar is not None and sequence.grammar.over:
        output.finish_reason = FinishReason.STOP
    elif sequence.num_output == stopping.max_new_tokens:
        output.finish_reason = FinishReason.LENGTH
