import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.engine.request import (
    AdapterUse,
    AnswerOutput,
    FinishReason,
    Request,
    RequestTimes,
    SamplingParams,
    StopCriteria,
    TokenLogprob,
)
from hotshoe.server.errors import AdapterUnusable, DeadlinePassed, Draining
from hotshoe.server.services.answers import RequestAnswers

EOS = 256


class ByteTokenizer:
    """One token a byte; 256 ends."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(token for token in token_ids if token < EOS).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        return "<end>" if token_id == EOS else self.decode([token_id])


def _answers(*, stop: Sequence[str] = (), min_new_tokens: int = 0, **fields: Any) -> RequestAnswers:
    stopping = StopCriteria(max_new_tokens=100, min_new_tokens=min_new_tokens, stop=tuple(stop))
    request = Request("r", tuple(b"prompt"), SamplingParams(seed=7), stopping, **fields)
    return RequestAnswers(request, ByteTokenizer())  # type: ignore[arg-type]


def _feed(answers: RequestAnswers, data: bytes, index: int = 0) -> list[str]:
    return [answers.add(AnswerOutput("r", index, token_ids=[byte])) for byte in data]


def _end(answers: RequestAnswers, reason: FinishReason, index: int = 0) -> str:
    return answers.add(AnswerOutput("r", index, finish_reason=reason))


def test_text_comes_in_whole_characters() -> None:
    answers = _answers()
    assert _feed(answers, "aé".encode()) == ["a", "", "é"]
    assert _end(answers, FinishReason.LENGTH) == ""
    assert answers[0].text == "aé"
    assert answers.finished and answers.engine_is_done


def test_an_end_of_text_token_counts_but_shows_no_text() -> None:
    answers = _answers()
    answers.add(AnswerOutput("r", 0, token_ids=[ord("a")]))
    answers.add(AnswerOutput("r", 0, token_ids=[EOS], finish_reason=FinishReason.EOS))
    assert answers[0].text == "a"
    assert [token.text for token in answers[0].tokens] == ["a", "<end>"]
    assert answers.final("r").completions[0].finish_reason == generation_pb2.FINISH_REASON_EOS


def test_a_stop_string_across_tokens_cuts_the_text_and_ends_the_answer() -> None:
    answers = _answers(stop=["END"])
    deltas = _feed(answers, b"ab END more")
    assert "".join(deltas) == "ab " == answers[0].text
    completion = answers.final("r").completions[0]
    assert completion.finish_reason == generation_pb2.FINISH_REASON_STOP
    assert completion.stop_sequence == "END"
    assert completion.seed == 7
    assert len(answers[0].tokens) == len(b"ab END")
    assert answers.usage().completion_tokens == len(b"ab END")


def test_what_might_have_begun_a_stop_string_is_given_at_the_end() -> None:
    answers = _answers(stop=["END"])
    assert "".join(_feed(answers, b"abEN")) == "ab"
    assert _end(answers, FinishReason.LENGTH) == "EN"
    assert answers[0].text == "abEN"
    assert answers.final("r").completions[0].finish_reason == generation_pb2.FINISH_REASON_LENGTH


def test_stop_strings_are_not_looked_for_before_the_minimum() -> None:
    answers = _answers(stop=["x"], min_new_tokens=4)
    assert "".join(_feed(answers, b"axbxcxd")) == "axbxc"
    assert answers[0].stop_sequence == "x"


def test_the_engine_may_drop_only_the_answer_that_met_its_stop_string() -> None:
    answers = _answers(stop=["x"], n=2)
    output = AnswerOutput("r", 1, token_ids=[ord("x")])
    answers.add(output)
    assert answers.engine_may_drop(output)
    assert not answers.finished
    other = AnswerOutput("r", 0, token_ids=[ord("a")], finish_reason=FinishReason.LENGTH)
    answers.add(other)
    assert not answers.engine_may_drop(other)
    assert answers.finished and not answers.engine_is_done
    assert _end(answers, FinishReason.CANCELLED, index=1) == ""
    assert answers.engine_is_done
    reasons = [completion.finish_reason for completion in answers.final("r").completions]
    assert reasons == [generation_pb2.FINISH_REASON_LENGTH, generation_pb2.FINISH_REASON_STOP]


def test_logprobs_and_alternatives_arrive_with_their_texts() -> None:
    answers = _answers(prompt_logprobs=1)
    logprob = TokenLogprob(ord("a"), -0.5, 1, ((ord("a"), -0.5), (EOS, -2.0)))
    prompt = [None, *(TokenLogprob(byte, -1.0, 2) for byte in b"rompt")]
    answers.add(
        AnswerOutput("r", 0, token_ids=[ord("a")], logprobs=[logprob], prompt_logprobs=prompt)  # type: ignore[arg-type]
    )
    _end(answers, FinishReason.LENGTH)
    token = answers[0].tokens[0]
    assert (token.logprob, token.rank) == (-0.5, 1)
    assert [(other.text, other.logprob) for other in token.alternatives] == [("a", -0.5), ("<end>", -2.0)]
    prompt_tokens = answers.final("r").prompt_tokens
    assert "".join(token.text for token in prompt_tokens) == "prompt"
    assert not prompt_tokens[0].HasField("logprob")
    assert prompt_tokens[1].logprob == -1.0


def test_a_token_without_logprobs_has_the_fields_unset() -> None:
    answers = _answers()
    _feed(answers, b"a")
    assert not answers[0].tokens[0].HasField("logprob")
    assert not answers[0].tokens[0].HasField("rank")


def test_usage_and_summary_tell_the_times_of_the_first_answer() -> None:
    use = AdapterUse("poet:v1", "poet", "sha256:1", 0.5)
    answers = _answers(adapters=(use,), n=2)
    late, early = RequestTimes(0.5, 0.25, 2.0), RequestTimes(0.5, 0.25, 1.0)
    answers.add(AnswerOutput("r", 1, token_ids=[1], times=late, finish_reason=FinishReason.STOP))
    answers.add(
        AnswerOutput("r", 0, token_ids=[1], times=early, cached_prompt_tokens=4, finish_reason=FinishReason.LENGTH)
    )
    usage = answers.usage()
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_prompt_tokens) == (6, 2, 4)
    assert usage.time_to_first_token.ToMilliseconds() == 1000
    assert usage.adapter_load_time.ToMilliseconds() == 250
    summary = answers.summary("OK", admitted=True)
    assert summary.adapters == ("poet",)
    assert summary.finish_reasons == ("length", "stop")
    assert (summary.queue_seconds, summary.first_token_seconds) == (0.5, 1.0)
    resolved = answers.final("r").adapters[0]
    assert (resolved.reference, resolved.digest, resolved.weight) == ("poet:v1", "sha256:1", 0.5)


@pytest.mark.parametrize(
    ("code", "reason"), [("CANCELLED", "abort"), ("DEADLINE_EXCEEDED", "abort"), ("DATA_LOSS", "error")]
)
def test_an_unfinished_answer_counts_as_its_code_says(code: str, reason: str) -> None:
    assert _answers().summary(code, admitted=True).finish_reasons == (reason,)


def test_an_error_of_the_engine_is_raised_as_it_is() -> None:
    with pytest.raises(AdapterUnusable):
        _answers().add(AnswerOutput("r", 0, error=AdapterUnusable("x")))
    with pytest.raises(ZeroDivisionError):
        _answers().add(AnswerOutput("r", 0, error=ZeroDivisionError()))


def test_what_the_engine_gave_up_says_why() -> None:
    with pytest.raises(Draining):
        _end(_answers(), FinishReason.CANCELLED)
    late = _answers()
    late.request = replace(late.request, deadline=time.monotonic() - 1)
    assert late.deadline_passed and not _answers().deadline_passed
    with pytest.raises(DeadlinePassed):
        _end(late, FinishReason.CANCELLED)
