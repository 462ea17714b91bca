"""The requests that are not finished: their answers, when they expire, and how they end."""

import heapq
from collections.abc import Callable, Collection

from hotshoe.server.engine.request import AnswerOutput, FinishReason, Request
from hotshoe.server.engine.scheduler import Scheduler
from hotshoe.server.engine.sequence import Sequence, SequenceStatus


class LiveRequests:
    """By request id. Belongs to the engine's thread.

    Whatever ends an answer ends it here, once: its pages and adapters are given back in the same breath.
    """

    def __init__(
        self, scheduler: Scheduler, *, eos_token_ids: Collection[int], on_finished: Callable[[str], None]
    ) -> None:
        """`on_finished` is told a request's id when the last of its answers has ended."""
        self._scheduler = scheduler
        self._eos_token_ids = tuple(eos_token_ids)
        self._on_finished = on_finished
        self._answers: dict[str, list[Sequence]] = {}
        self._expiries: list[tuple[float, int, str]] = []  # heap of (monotonic seconds, arrival, request id)
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def next_expiry(self) -> float | None:
        """No request expires before this time, in time.monotonic() seconds."""
        return self._expiries[0][0] if self._expiries else None

    def accept(self, request: Request) -> list[AnswerOutput]:
        """Queues a request's answers, or its choices; there are no outputs yet."""
        self._arrivals += 1
        answers: list[Sequence] = []
        for index in range(request.num_answers):
            leader = answers[0] if answers else None
            order = (self._arrivals, index)
            answers.append(Sequence(request, index, order=order, leader=leader, eos=self._eos_token_ids))
            self._scheduler.add(answers[-1])
        self._answers[request.request_id] = answers
        limit = request.stopping.time_limit_seconds
        expiries = (request.deadline, None if limit is None else request.arrival + limit)
        expiry = min((time for time in expiries if time is not None), default=None)
        if expiry is not None:
            heapq.heappush(self._expiries, (expiry, self._arrivals, request.request_id))
        return []

    def expire(self, now: float) -> list[AnswerOutput]:
        """Ends requests whose time limit (what there is, is the answer) or deadline (nobody waits) has passed."""
        outputs: list[AnswerOutput] = []
        while self._expiries and self._expiries[0][0] <= now:
            _, arrival, request_id = heapq.heappop(self._expiries)
            answers = self._answers.get(request_id)
            if answers is None or answers[0].order[0] != arrival:  # finished, and perhaps its id used again
                continue
            deadline = answers[0].request.deadline
            nobody_waits = deadline is not None and deadline <= now
            outputs += self.end(request_id, FinishReason.CANCELLED if nobody_waits else FinishReason.TIME_LIMIT)
        return outputs

    def end(self, request_id: str, reason: FinishReason, *, index: int | None = None) -> list[AnswerOutput]:
        """Ends every answer of a request that has not ended yet, or only the one of that index; none if not live."""
        outputs = []
        for answer in self._unfinished(request_id):
            if index not in (None, answer.index):
                continue
            outputs.append(new_output(answer))
            outputs[-1].finish_reason = reason
            self.finish(answer)
        return outputs

    def fail(self, request_id: str, error: Exception, *, soiled: bool = False) -> list[AnswerOutput]:
        """Fails every answer that has not ended yet; with `soiled`, their pages are cleared before they are reused."""
        outputs = []
        for answer in self._unfinished(request_id):
            outputs.append(new_output(answer))
            outputs[-1].error = error
            self.finish(answer, soiled=soiled)
        return outputs

    def fail_all(self, error: Exception) -> list[AnswerOutput]:
        """Fails everything."""
        return [output for request_id in list(self._answers) for output in self.fail(request_id, error)]

    def finish(self, answer: Sequence, *, soiled: bool = False) -> None:
        """Takes out an answer that has ended."""
        self._scheduler.finish(answer, soiled=soiled)
        request_id = answer.request.request_id
        if not self._unfinished(request_id):
            del self._answers[request_id]
            self._on_finished(request_id)

    def _unfinished(self, request_id: str) -> list[Sequence]:
        answers = self._answers.get(request_id, ())
        return [answer for answer in answers if answer.status is not SequenceStatus.FINISHED]


def new_output(answer: Sequence) -> AnswerOutput:
    """An output of that answer with nothing in it yet."""
    return AnswerOutput(answer.request.request_id, answer.index, cached_prompt_tokens=answer.cached_prompt_tokens)
