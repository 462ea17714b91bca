"""The engine's tokens → the messages of a request's answers: text, stop strings, log-probabilities, usage.

Event loop only. Knows messages and tokens; knows nothing of RPCs.
"""

import time
from collections.abc import Iterator, Sequence
from typing import Protocol

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.engine.request import AdapterUse, AnswerOutput, FinishReason, Request, RequestTimes, TokenLogprob
from hotshoe.server.errors import DeadlinePassed, Draining
from hotshoe.server.metrics import FinishedRequest
from hotshoe.server.model.detokenizer import Detokenizer
from hotshoe.server.model.tokenizer import Tokenizer
from hotshoe.server.services.status import row_of

FINISH_REASONS = {
    FinishReason.STOP: generation_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: generation_pb2.FINISH_REASON_LENGTH,
    FinishReason.EOS: generation_pb2.FINISH_REASON_EOS,
    FinishReason.TIME_LIMIT: generation_pb2.FINISH_REASON_TIME_LIMIT,
    FinishReason.CANCELLED: generation_pb2.FINISH_REASON_CANCELLED,
}
# vLLM's words, which dashboards filter by
_METRIC_REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.EOS: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.TIME_LIMIT: "length",
    FinishReason.CANCELLED: "abort",
}


class Answer:
    """One answer (or scored choice), growing as the engine gives tokens.

    Attributes:
        tokens: messages of the tokens so far, those of a stop string included.
        logprob: sum of their log-probabilities, as far as they are known.
        finish_reason: None while it goes on.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, request.stopping.stop, context=request.prompt_token_ids)
        self._min_new_tokens = request.stopping.min_new_tokens
        self._text: list[str] = []
        self.tokens: list[generation_pb2.Token] = []
        self.logprob = 0.0
        self.finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """All of it, without the stop string that ended it."""
        return "".join(self._text)

    @property
    def stop_sequence(self) -> str:
        """The stop string that ended it, "" if none did."""
        return self._detokenizer.stopped_by or ""

    def add(self, output: AnswerOutput) -> str:
        """Takes one output and returns the text that it completes. Past its end nothing is taken any more."""
        delta = ""
        for index, token_id in enumerate(output.token_ids):
            if self.finish_reason:
                return delta
            logprob = output.logprobs[index] if output.logprobs else None
            self.logprob += logprob.logprob if logprob else 0.0
            self.tokens.append(token_message(self._tokenizer, token_id, logprob))
            delta += self._detokenizer.push([token_id], may_stop=len(self.tokens) > self._min_new_tokens)
            if self._detokenizer.stopped_by is not None:
                self.finish_reason = FinishReason.STOP
        if output.finish_reason and not self.finish_reason:
            delta += self._detokenizer.flush()
            stopped = self._detokenizer.stopped_by is not None
            self.finish_reason = FinishReason.STOP if stopped else output.finish_reason
        self._text.append(delta)
        return delta


class RequestAnswers:
    """All answers of one request, its usage, and how it ended."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request = request
        self._tokenizer = tokenizer
        self._answers = [Answer(request, tokenizer) for _ in range(request.num_answers)]
        self._ended: set[int] = set()  # answers of which the engine gives nothing more
        self._prompt: list[generation_pb2.Token] = []
        self._cached_tokens = 0
        self._times: RequestTimes | None = None

    def __getitem__(self, index: int) -> Answer:
        return self._answers[index]

    def __iter__(self) -> Iterator[Answer]:
        return iter(self._answers)

    @property
    def finished(self) -> bool:
        return all(answer.finish_reason for answer in self._answers)

    @property
    def engine_is_done(self) -> bool:
        """False while the engine may still work on it."""
        return len(self._ended) == len(self._answers)

    @property
    def num_tokens(self) -> int:
        return sum(len(answer.tokens) for answer in self._answers)

    def engine_may_drop(self, output: AnswerOutput) -> bool:
        """True if the answer of `output` met a stop string, and the engine, not knowing, goes on with it."""
        return bool(self._answers[output.index].finish_reason) and output.index not in self._ended

    def add(self, output: AnswerOutput) -> str:
        """Takes one output and returns the text that it completes.

        Raises:
            Exception: the engine's, if the answer failed.
            DeadlinePassed, Draining: the engine gave it up.
        """
        if output.is_last:
            self._ended.add(output.index)
        answer = self._answers[output.index]
        if answer.finish_reason:
            return ""
        if output.error:
            # many requests may share one failed load, and each raise would lengthen its traceback
            raise output.error.with_traceback(None) if row_of(output.error) else output.error
        if output.finish_reason is FinishReason.CANCELLED:
            raise self._given_up()
        if output.prompt_logprobs is not None:
            self._prompt = [
                token_message(self._tokenizer, token_id, logprob)
                for token_id, logprob in zip(self.request.prompt_token_ids, output.prompt_logprobs, strict=True)
            ]
        self._cached_tokens = max(self._cached_tokens, output.cached_prompt_tokens)
        if output.times and (self._times is None or output.times.first_token < self._times.first_token):
            self._times = output.times
        return answer.add(output)

    def final(self, request_id: str) -> generation_pb2.GenerateResponse:
        """Everything but text and tokens; `request_id` is the caller's."""
        seed = self.request.sampling.seed
        return generation_pb2.GenerateResponse(
            completions=[
                generation_pb2.Completion(
                    finish_reason=FINISH_REASONS[answer.finish_reason],
                    stop_sequence=answer.stop_sequence,
                    seed=seed,
                )
                for answer in self._answers
                if answer.finish_reason
            ],
            usage=self.usage(),
            adapters=resolved_adapters(self.request.named_adapters),
            prompt_tokens=self._prompt,
            request_id=request_id,
        )

    def usage(self) -> generation_pb2.Usage:
        """Tokens so far, and times once the first of them came."""
        usage = generation_pb2.Usage(
            prompt_tokens=len(self.request.prompt_token_ids),
            completion_tokens=self.num_tokens,
            cached_prompt_tokens=self._cached_tokens,
        )
        if self._times:
            usage.queue_time.FromNanoseconds(int(self._times.queued * 1e9))
            usage.adapter_load_time.FromNanoseconds(int(self._times.adapter_load * 1e9))
            usage.time_to_first_token.FromNanoseconds(int(self._times.first_token * 1e9))
        return usage

    def summary(self, code: str, *, admitted: bool) -> FinishedRequest:
        """What the metrics want to know of it; `code` is gRPC's."""
        failed = "abort" if code in ("CANCELLED", "DEADLINE_EXCEEDED") else "error"
        reasons = [
            _METRIC_REASONS[answer.finish_reason] if answer.finish_reason else failed for answer in self._answers
        ]
        return FinishedRequest(
            adapters=tuple(dict.fromkeys(use.name for use in self.request.named_adapters)),  # two may be its tasks
            code=code,
            admitted=admitted,
            finish_reasons=tuple(reasons),
            prompt_tokens=len(self.request.prompt_token_ids),
            generation_tokens=0 if self.request.choices else self.num_tokens,
            seconds=time.monotonic() - self.request.arrival,
            queue_seconds=self._times.queued if self._times else None,
            first_token_seconds=self._times.first_token if self._times else None,
        )

    @property
    def deadline_passed(self) -> bool:
        return self.request.deadline is not None and time.monotonic() >= self.request.deadline

    def _given_up(self) -> Exception:
        if self.deadline_passed:
            return DeadlinePassed("the deadline passed before the answer was complete")
        return Draining("the server shut down before the answer was complete")


class TokenTexts(Protocol):
    """Token id to text."""

    def token_text(self, token_id: int) -> str: ...


def token_message(tokenizer: TokenTexts, token_id: int, logprob: TokenLogprob | None) -> generation_pb2.Token:
    """A token, with its log-probability and the alternatives if they are known."""
    message = generation_pb2.Token(token_id=token_id, text=tokenizer.token_text(token_id))
    if logprob is not None:
        message.logprob = logprob.logprob
        message.rank = logprob.rank
        for other_id, other_logprob in logprob.alternatives:
            message.alternatives.add(token_id=other_id, text=tokenizer.token_text(other_id), logprob=other_logprob)
    return message


def resolved_adapters(adapters: Sequence[AdapterUse]) -> list[generation_pb2.ResolvedAdapter]:
    """What each reference resolved to."""
    return [
        generation_pb2.ResolvedAdapter(reference=use.reference, digest=use.digest, weight=use.weight, task=use.task)
        for use in adapters
    ]
