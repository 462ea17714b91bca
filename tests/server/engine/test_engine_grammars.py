"""Answers held to a grammar: the likeliest token of those that a brute-force look at the language allows."""

import gc
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import pytest
import torch
from model_directories import VOCAB_SIZE, tiny_tokenizer
from running_engine import Answer, RunningEngine, make_request
from transformers import PreTrainedModel

from hotshoe.server.engine.request import FinishReason, Request, SamplingParams
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.model.grammar import Grammar
from hotshoe.server.model.grammars import Grammars
from hotshoe.server.model.tokenizer import Tokenizer

StartEngine = Callable[..., RunningEngine]
EOS = (256, 258)
PATTERN = r"(yes|no|\?é) [0-4]{1,2}!?"
TEXTS = [
    f"{word} {number}{end}"
    for word in ("yes", "no", "?é")
    for number in [*map(str, range(5)), *(f"{a}{b}" for a in range(5) for b in range(5))]
    for end in ("", "!")
]
PROMPTS = [[3, 200, 17], [65, 66], [7], [90, 11, 12, 13, 14, 15]]
DRAWN = SamplingParams(temperature=2.0, top_p=0.95, top_k=40, repetition_penalty=1.3, seed=7)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer(), eos_token_ids=EOS)


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, vocab_size=VOCAB_SIZE)


@pytest.fixture(scope="module")
def grammar(grammars: Grammars) -> Grammar:
    return grammars.regex("format.regex", PATTERN)


def held(grammar: Grammar, prompt: Sequence[int], *, ignore_eos: bool = False, **fields: object) -> Request:
    stopping = {"ignore_eos": ignore_eos, **fields.pop("stopping", {})}  # type: ignore[dict-item]
    return make_request(prompt, grammar=grammar, stopping=stopping, **{"max_new_tokens": 20, **fields})  # type: ignore[arg-type]


def text_of(tokenizer: Tokenizer, answer: Answer) -> str:
    assert answer.error is None
    return tokenizer.decode(answer.token_ids)


def followers(tokenizer: Tokenizer, so_far: Sequence[int], texts: Iterable[str] = TEXTS) -> set[int]:
    """Every token that continues to a text of the language, and the ends of text where one is complete."""
    found: set[int] = set()
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids[: len(so_far)] == list(so_far):
            found |= set(ids[len(so_far) : len(so_far) + 1]) or set(EOS)
    return found


def test_greedy_is_the_likeliest_of_what_the_language_allows(
    start_engine: StartEngine, model: PreTrainedModel, tokenizer: Tokenizer, grammar: Grammar
) -> None:
    neighbours = [make_request(prompt, max_new_tokens=12) for prompt in PROMPTS]
    with start_engine(eos_token_ids=EOS) as running:
        alone = running.run(*(make_request(prompt, max_new_tokens=12) for prompt in PROMPTS))
    with start_engine(eos_token_ids=EOS) as running:
        answers = running.run(*(held(grammar, prompt, logprobs=2) for prompt in PROMPTS), *neighbours)
    for prompt, answer in zip(PROMPTS, answers[: len(PROMPTS)], strict=True):
        expected: list[int] = []
        logprobs = []
        while not set(EOS) & set(expected) and followers(tokenizer, expected) != set(EOS):
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *expected]])).logits[0, -1]
            allowed = sorted(followers(tokenizer, expected))
            expected.append(allowed[int(logits[allowed].argmax())])
            logprobs.append(float(logits.log_softmax(-1)[expected[-1]]))
        assert answer.token_ids == expected
        assert [known.logprob for known in answer.logprobs] == pytest.approx(logprobs, abs=1e-4), "the model's own"
        ended = FinishReason.EOS if expected[-1] in EOS else FinishReason.STOP
        assert answer.finish_reason is ended and text_of(tokenizer, answer) in TEXTS
    assert [answer.token_ids for answer in answers[len(PROMPTS) :]] == [answer.token_ids for answer in alone]


def test_drawn_answers_are_of_the_language_and_survive_preemption(
    start_engine: StartEngine, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    grammar = grammars.regex("format.regex", "[ab]{20,30}c")

    def requests() -> list[Request]:
        return [held(grammar, [*p, *range(12)], n=3, max_new_tokens=40, sampling=DRAWN) for p in PROMPTS]

    roomy, cramped = requests(), requests()
    with start_engine(eos_token_ids=EOS) as running:
        running.run(*roomy)
        expected = [answer.token_ids for request in roomy for answer in running.all_answers(request)]
    with start_engine(eos_token_ids=EOS, kv_tokens=128) as running:
        running.run(*cramped)
        answers = [answer for request in cramped for answer in running.all_answers(request)]
    assert running.total("preemptions") > 3
    assert [answer.token_ids for answer in answers] == expected
    assert len(set(map(tuple, expected))) > 8
    assert all(re.fullmatch("[ab]{20,30}c", text_of(tokenizer, answer)) for answer in answers)


def test_what_may_end_an_answer(start_engine: StartEngine, tokenizer: Tokenizer, grammars: Grammars) -> None:
    def ended(pattern: str, **fields: object) -> tuple[str, FinishReason | None]:
        request = held(grammars.regex("format.regex", pattern), [5, 6], **fields)
        (answer,) = running.run(request)
        return text_of(tokenizer, answer), answer.finish_reason

    brace = tokenizer.encode("}", add_special_tokens=False)
    likes_eos = SamplingParams(logit_bias={256: 500.0})
    with start_engine(eos_token_ids=EOS) as running:
        assert ended("ab?", sampling=likes_eos) == ("a", FinishReason.EOS)
        assert ended("ab?", sampling=likes_eos, ignore_eos=True) == ("ab", FinishReason.STOP)
        assert ended("ab?", sampling=likes_eos, stopping={"min_new_tokens": 2}) == ("ab", FinishReason.STOP)
        assert ended("ab{2}", stopping={"min_new_tokens": 9}) == ("abb", FinishReason.STOP), "no more can come"
        assert ended("a{9}", max_new_tokens=4) == ("aaaa", FinishReason.LENGTH)
        assert ended("a{4}", max_new_tokens=4) == ("aaaa", FinishReason.STOP), "complete, so not cut short"
        stops = {"stop_token_ids": frozenset(brace), "min_new_tokens": 3}
        assert ended("a}b", stopping=stops) == ("a}", FinishReason.STOP), "banned, but nothing else is allowed"
        away = SamplingParams(logit_bias=dict.fromkeys(range(256), -900.0), repetition_penalty=2.0)
        assert ended("ab", sampling=away) == ("ab", FinishReason.STOP)


def test_one_that_becomes_too_complex_fails_alone(start_engine: StartEngine, grammars: Grammars) -> None:
    """Each character that might come leads to a state of its own, of which there are soon too many."""
    wild = grammars.regex("format.regex", "|".join(rf".*\x{c:02x}.{{60}}\x{c:02x}" for c in range(0x30, 0x7B)))
    flat = SamplingParams(temperature=100.0, seed=1)
    with start_engine(eos_token_ids=EOS, kv_tokens=2048) as running:
        (expected,) = running.run(make_request([1], max_new_tokens=60))
        failed, fine = running.run(
            held(wild, [1], max_new_tokens=500, sampling=flat, ignore_eos=True), make_request([1], max_new_tokens=60)
        )
    assert isinstance(failed.error, InvalidRequest) and failed.error.field == "format"
    assert "too many states" in failed.error.problem and wild.broken
    assert fine.token_ids == expected.token_ids


def test_whatever_is_cancelled_is_forgotten(start_engine: StartEngine, grammars: Grammars) -> None:
    grammar = grammars.regex("format.regex", "[ab]+")
    gone = weakref.ref(grammar)
    request = held(grammar, [1, 2], ignore_eos=True, max_new_tokens=200, n=2)
    with start_engine(eos_token_ids=EOS) as running:
        running.before_step(4, partial(running.engine.cancel, request.request_id))
        running.run(request)
        assert {a.finish_reason for a in running.all_answers(request)} == {FinishReason.CANCELLED}
        del request, grammar
        running.run(make_request([1], max_new_tokens=3))
    gc.collect()
    assert gone() is None
