"""What requests get from the base model: transformers' own tokens and log-probabilities, however they are batched."""

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from running_engine import RunningEngine, make_request
from torch import Tensor
from transformers import PreTrainedModel

from hotshoe.server.engine.request import FinishReason, SamplingParams

StartEngine = Callable[..., RunningEngine]
# Seeds of draws are such that none falls within 1e-5 of the border between two tokens, which moves by 1e-7 or so with
# who else is in a batch.
RANDOM = random.Random(0)
PROMPTS = [[RANDOM.randrange(256) for _ in range(length)] for length in (3, 40, 17, 100, 1, 64, 33, 8)]


def greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> list[int]:
    generated = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return generated[0, len(prompt) :].tolist()


def log_softmax(model: PreTrainedModel, token_ids: Sequence[int]) -> Tensor:
    """[len(token_ids), vocab]: row i is about token i + 1."""
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0].double().log_softmax(-1)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"max_step_tokens": 16, "max_running_requests": 3, "page_tokens": 1},
        {"max_step_tokens": 8, "max_running_requests": 8, "page_tokens": 16},
    ],
)
def test_greedy_tokens_are_those_of_transformers(
    start_engine: StartEngine, model: PreTrainedModel, config: dict[str, int]
) -> None:
    with start_engine(**config) as running:
        answers = running.run(*(make_request(prompt, max_new_tokens=20) for prompt in PROMPTS))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert answer.token_ids == greedy(model, prompt, 20)
        assert answer.finish_reason is FinishReason.LENGTH and answer.error is None
    mixed = [r.stats for r in running.reports if r.stats.prefill_tokens and r.stats.decode_tokens]
    assert mixed, "prompts are computed in the same steps as decodes"
    limit = config.get("max_step_tokens", 64)
    assert max(report.stats.rows for report in running.reports) <= limit
    assert running.total("rows") == sum(map(len, PROMPTS)) + 19 * len(PROMPTS), "nothing was computed twice"


def test_preemption_changes_no_token(start_engine: StartEngine, model: PreTrainedModel) -> None:
    prompts = [prompt[:20] for prompt in PROMPTS]
    sampling = SamplingParams(temperature=1.0, seed=4, repetition_penalty=1.2)

    def requests() -> list:
        return [make_request(p, max_new_tokens=40, sampling=s) for p in prompts for s in (None, sampling)]

    with start_engine(kv_tokens=4096) as roomy:
        expected = [answer.token_ids for answer in roomy.run(*requests())]
    assert roomy.total("preemptions") == 0
    with start_engine(kv_tokens=160) as cramped:
        answers = cramped.run(*requests())
    assert cramped.total("preemptions") > 3
    assert [answer.token_ids for answer in answers] == expected
    assert all(len(answer.token_ids) == 40 for answer in answers)
    assert expected[0] == greedy(model, prompts[0], 40)


def test_a_preempted_request_does_not_repeat_its_prompt_logprobs(start_engine: StartEngine) -> None:
    requests = [make_request(prompt[:20], max_new_tokens=40, prompt_logprobs=1) for prompt in PROMPTS]
    with start_engine(kv_tokens=160) as running:
        answers = running.run(*requests)
    assert running.total("preemptions") > 0
    for request, answer in zip(requests, answers, strict=True):
        assert answer.prompt_logprobs is not None
        assert len(answer.prompt_logprobs) == len(request.prompt_token_ids)
        assert len(answer.token_ids) == 40


def test_a_repeated_prompt_is_taken_from_the_cache(start_engine: StartEngine, model: PreTrainedModel) -> None:
    prompt = PROMPTS[3]
    with start_engine(page_tokens=8) as running:
        (first,) = running.run(make_request(prompt))
        (again,) = running.run(make_request(prompt))
        (longer,) = running.run(make_request([*prompt, *first.token_ids[:5]]))
        (other,) = running.run(make_request([prompt[0] ^ 1, *prompt[1:]]))
    assert first.cached_prompt_tokens == 0
    assert again.cached_prompt_tokens == 96, "all full pages but what the last token's logits need"
    assert longer.cached_prompt_tokens == 104, "pages that decoding filled are shared as well"
    assert other.cached_prompt_tokens == 0, "a page is found only behind the pages before it"
    assert again.token_ids == first.token_ids == greedy(model, prompt, 8)
    assert longer.token_ids == greedy(model, [*prompt, *first.token_ids[:5]], 8)
    assert running.total("prefix_hits") == 96 + 104
    assert running.total("prefix_queries") == 100 + 100 + 105 + 100
    computed = running.total("rows")
    assert computed == 100 + 4 + 1 + 100 + 4 * 7


def test_a_whole_number_of_pages_still_computes_the_last_token(start_engine: StartEngine) -> None:
    prompt = PROMPTS[5]
    with start_engine(page_tokens=8) as running:
        (first,) = running.run(make_request(prompt))
        (again,) = running.run(make_request(prompt))
    assert again.cached_prompt_tokens == 56 and again.token_ids == first.token_ids


def test_tenants_never_share_a_page(start_engine: StartEngine) -> None:
    with start_engine() as running:
        for tenant, cached in (("a", 0), ("b", 0), ("", 0), ("a", 96), ("b", 96)):
            (answer,) = running.run(make_request(PROMPTS[3], tenant=tenant))
            assert answer.cached_prompt_tokens == cached, tenant


def test_tenants_share_pages_only_where_that_is_configured(start_engine: StartEngine) -> None:
    with start_engine(share_prefixes=True) as running:
        answers = [running.run(make_request(PROMPTS[3], tenant=tenant))[0] for tenant in ("a", "b", "")]
    assert [answer.cached_prompt_tokens for answer in answers] == [0, 96, 96]
    assert len({tuple(answer.token_ids) for answer in answers}) == 1


def test_seeds_reproduce_whatever_the_neighbours(start_engine: StartEngine) -> None:
    samplings = [
        SamplingParams(temperature=1.0, seed=5),
        SamplingParams(temperature=0.8, top_p=0.9, seed=6),
        SamplingParams(temperature=1.3, top_k=40, min_p=0.02, seed=7),
        SamplingParams(temperature=1.0, frequency_penalty=0.5, presence_penalty=0.2, seed=8),
    ]
    alone = []
    with start_engine() as running:
        for sampling in samplings:
            alone += running.run(make_request(PROMPTS[2], sampling=sampling, max_new_tokens=30))
    neighbours = [make_request(p, sampling=SamplingParams(temperature=1.0, seed=9)) for p in PROMPTS]
    with start_engine(max_step_tokens=16) as running:
        requests = [make_request(PROMPTS[2], sampling=s, max_new_tokens=30, tenant=str(s.seed)) for s in samplings]
        together = running.run(*requests, *neighbours)
    assert [a.token_ids for a in together[:4]] == [a.token_ids for a in alone]
    assert len({tuple(a.token_ids) for a in alone}) == 4


def test_another_seed_gives_another_answer(start_engine: StartEngine) -> None:
    with start_engine() as running:
        requests = [
            make_request(PROMPTS[0], sampling=SamplingParams(temperature=1.0, seed=seed), max_new_tokens=12)
            for seed in (0, 1, 2**64 - 1)
        ]
        answers = running.run(*requests)
    assert len({tuple(answer.token_ids) for answer in answers}) == 3


def test_a_stop_token_an_eos_and_the_length_end_an_answer(start_engine: StartEngine, model: PreTrainedModel) -> None:
    prompt = PROMPTS[1]
    tokens = greedy(model, prompt, 20)
    ending = next(t for i, t in enumerate(tokens) if i >= 3 and t not in tokens[:i])
    position = tokens.index(ending)
    with start_engine(eos_token_ids=[ending]) as running:
        eos, ignored, stopped, both, minimum = running.run(
            make_request(prompt, max_new_tokens=20, stopping={"ignore_eos": False}),
            make_request(prompt, max_new_tokens=20),
            make_request(prompt, max_new_tokens=20, stopping={"stop_token_ids": frozenset([ending])}),
            make_request(prompt, max_new_tokens=position + 1, stopping={"ignore_eos": False}),
            make_request(prompt, max_new_tokens=20, stopping={"ignore_eos": False, "min_new_tokens": position + 3}),
        )
    assert eos.finish_reason is FinishReason.EOS and eos.token_ids == tokens[: position + 1]
    assert ignored.finish_reason is FinishReason.LENGTH and ignored.token_ids == tokens
    assert stopped.finish_reason is FinishReason.STOP and stopped.token_ids == tokens[: position + 1]
    assert both.finish_reason is FinishReason.EOS, "an end of text at the last token is an end of text"
    assert minimum.token_ids[:position] == tokens[:position]
    assert ending not in minimum.token_ids[: position + 3] and len(minimum.token_ids) >= position + 3


def test_penalties_and_bias_are_those_of_transformers(start_engine: StartEngine, model: PreTrainedModel) -> None:
    prompt = PROMPTS[2]
    expected = model.generate(
        torch.tensor([prompt]), max_new_tokens=15, do_sample=False, repetition_penalty=1.8, eos_token_id=None
    )[0, len(prompt) :].tolist()
    with start_engine() as running:
        penalized, biased, frequent = running.run(
            make_request(prompt, max_new_tokens=15, sampling=SamplingParams(repetition_penalty=1.8)),
            make_request(prompt, max_new_tokens=5, sampling=SamplingParams(logit_bias={123: 1000.0})),
            make_request(
                prompt, max_new_tokens=5, sampling=SamplingParams(logit_bias={123: 50.0}, frequency_penalty=100.0)
            ),
        )
    assert penalized.token_ids == expected
    assert biased.token_ids == [123] * 5
    assert frequent.token_ids.count(123) == 1 and frequent.token_ids[0] == 123


def test_logprobs_are_those_of_log_softmax(start_engine: StartEngine, model: PreTrainedModel) -> None:
    prompt = PROMPTS[1]
    sampling = SamplingParams(temperature=2.0, seed=3, logit_bias={7: 5.0})
    with start_engine(max_step_tokens=16) as running:
        plain, drawn, none = running.run(
            make_request(prompt, logprobs=3),
            make_request(prompt, logprobs=0, sampling=sampling),
            make_request(prompt),
        )
    for answer, alternatives in ((plain, 3), (drawn, 0)):
        logprobs = log_softmax(model, [*prompt, *answer.token_ids])
        assert [entry.token_id for entry in answer.logprobs] == answer.token_ids
        for position, entry in enumerate(answer.logprobs, start=len(prompt) - 1):
            row = logprobs[position]
            assert abs(entry.logprob - float(row[entry.token_id])) < 1e-4
            assert entry.rank == 1 + int((row > row[entry.token_id]).sum())
            assert [token for token, _ in entry.alternatives] == row.topk(alternatives).indices.tolist()
    assert all(entry.rank == 1 for entry in plain.logprobs) and any(entry.rank > 1 for entry in drawn.logprobs)
    assert none.logprobs == []


@pytest.mark.parametrize("max_step_tokens", [16, 512])
def test_prompt_logprobs_cover_the_whole_prompt_even_if_it_is_cached(
    start_engine: StartEngine, model: PreTrainedModel, max_step_tokens: int
) -> None:
    prompt = PROMPTS[3]
    with start_engine(max_step_tokens=max_step_tokens) as running:
        running.run(make_request(prompt))
        (answer,) = running.run(make_request(prompt, prompt_logprobs=2, max_new_tokens=3))
        (single,) = running.run(make_request([5], prompt_logprobs=0, max_new_tokens=1))
    assert answer.cached_prompt_tokens == 0
    assert answer.token_ids == greedy(model, prompt, 3)
    logprobs = log_softmax(model, prompt)
    assert answer.prompt_logprobs is not None and len(answer.prompt_logprobs) == len(prompt)
    assert answer.prompt_logprobs[0] is None
    for position, entry in enumerate(answer.prompt_logprobs[1:]):
        assert entry is not None and entry.token_id == prompt[position + 1]
        assert abs(entry.logprob - float(logprobs[position, entry.token_id])) < 1e-4
        assert [token for token, _ in entry.alternatives] == logprobs[position].topk(2).indices.tolist()
    assert single.prompt_logprobs == [None]


def test_n_answers_share_the_prompt_s_pages(start_engine: StartEngine, model: PreTrainedModel) -> None:
    prompt = PROMPTS[3]
    request = make_request(prompt, n=5, sampling=SamplingParams(temperature=1.0, seed=11), max_new_tokens=10)
    with start_engine(page_tokens=8) as running:
        running.run(request)
        answers = running.all_answers(request)
        (first_alone,) = running.run(
            make_request(prompt, sampling=SamplingParams(temperature=1.0, seed=11), max_new_tokens=10)
        )
    assert len(answers) == 5
    assert len({tuple(answer.token_ids) for answer in answers}) == 5, "each answer draws its own numbers"
    assert answers[0].token_ids == first_alone.token_ids
    assert [answer.cached_prompt_tokens for answer in answers] == [0, 99, 99, 99, 99]
    prefill = running.total("prefill_tokens")
    assert prefill == 100 + 4 * 1 + 4, "the prompt once, its last token for each answer, and the rest for the other"
    assert all(answer.terminals == 1 and answer.outputs_after_end == 0 for answer in answers)


@pytest.mark.parametrize("page_tokens", [1, 4, 16, 64])
def test_branches_compute_their_prompt_once_though_it_ends_within_a_page(
    start_engine: StartEngine, model: PreTrainedModel, page_tokens: int
) -> None:
    """All but its last token, whose logits each branch needs; nothing was cached, and they came together."""
    prompt, choices = PROMPTS[3][:61], tuple((i, 7, i) for i in range(6))
    with start_engine(page_tokens=page_tokens) as running:
        running.run(make_request(prompt, max_new_tokens=0, choices=choices, logprobs=0))
        assert running.total("rows") == 60 + 6 * 3
        answers = make_request(PROMPTS[3][1:60], n=6, max_new_tokens=5)
        running.run(answers)
        assert running.total("prefill_tokens") == 60 + 6 * 3 + 58 + 6
    expected = greedy(model, PROMPTS[3][1:60], 5)
    assert [answer.token_ids for answer in running.all_answers(answers)] == [expected] * 6


def test_a_branch_goes_on_in_a_copy_of_the_page_it_shares(start_engine: StartEngine) -> None:
    """Each writes behind the same beginning of a page: sampled answers stay what they are alone."""
    prompt = PROMPTS[3][:61]
    sampling = SamplingParams(temperature=1.0, seed=11)
    together = make_request(prompt, n=5, sampling=sampling, max_new_tokens=12)
    with start_engine(page_tokens=32) as running:
        running.run(together)
        first, second = running.all_answers(together)[:2]
    alone = make_request(prompt, n=2, sampling=sampling, max_new_tokens=12)
    with start_engine(page_tokens=1) as running:  # where no page is shared in part
        running.run(alone)
        assert [a.token_ids for a in running.all_answers(alone)] == [first.token_ids, second.token_ids]


def test_branches_of_two_tenants_share_nothing(start_engine: StartEngine) -> None:
    requests = [make_request(PROMPTS[3][:61], n=2, max_new_tokens=2, tenant=tenant) for tenant in ("a", "b", "a")]
    with start_engine(page_tokens=64) as running:
        for request in requests:
            running.run(request)
        cached = [[a.cached_prompt_tokens for a in running.all_answers(request)] for request in requests]
    assert cached == [[0, 60], [0, 60], [60, 60]]


def test_n_greedy_answers_are_the_same(start_engine: StartEngine, model: PreTrainedModel) -> None:
    request = make_request(PROMPTS[0], n=3)
    with start_engine(max_running_requests=4, max_step_tokens=4) as running:
        running.run(request)
    expected = greedy(model, PROMPTS[0], 8)
    assert [answer.token_ids for answer in running.all_answers(request)] == [expected] * 3


@pytest.mark.parametrize("config", [{}, {"max_step_tokens": 16, "page_tokens": 8}, {"kv_tokens": 128}])
def test_scores_are_teacher_forced_logprobs(
    start_engine: StartEngine, model: PreTrainedModel, config: dict[str, int]
) -> None:
    prompt = PROMPTS[1]
    choices = ((5,), (9, 8, 7), tuple(PROMPTS[3][:30]), (200,), (9, 8))
    request = make_request(prompt, max_new_tokens=0, choices=choices, logprobs=1)
    with start_engine(**config) as running:
        running.run(request)
    answers = running.all_answers(request)
    assert len(answers) == len(choices)
    for choice, answer in zip(choices, answers, strict=True):
        logprobs = log_softmax(model, [*prompt, *choice])
        assert answer.token_ids == list(choice) == [entry.token_id for entry in answer.logprobs]
        assert answer.finish_reason is FinishReason.LENGTH and answer.terminals == 1
        for position, entry in enumerate(answer.logprobs, start=len(prompt) - 1):
            assert abs(entry.logprob - float(logprobs[position, entry.token_id])) < 1e-4
            assert entry.alternatives[0][0] == int(logprobs[position].argmax())
    rows = running.total("rows")
    if config != {"kv_tokens": 128}:  # where some give way, and are computed again
        assert rows == len(prompt) - 1 + sum(map(len, choices)), "the prompt once, but for its last token"
        assert all(answer.cached_prompt_tokens == len(prompt) - 1 for answer in answers[1:])


def test_scores_are_the_same_with_a_warm_cache(start_engine: StartEngine) -> None:
    prompt, choices = PROMPTS[1], ((5, 6, 7), (9,))
    with start_engine(page_tokens=2) as running:
        cold = make_request(prompt, max_new_tokens=0, choices=choices, logprobs=0)
        warm = make_request(prompt, max_new_tokens=0, choices=choices, logprobs=0)
        running.run(cold)
        running.run(warm)
    for first, second in zip(running.all_answers(cold), running.all_answers(warm), strict=True):
        assert [entry.token_id for entry in first.logprobs] == [entry.token_id for entry in second.logprobs]
        for a, b in zip(first.logprobs, second.logprobs, strict=True):
            assert abs(a.logprob - b.logprob) < 1e-5
        assert second.cached_prompt_tokens == 39, "the prompt's last token must be computed for its logits"


def test_times_come_once_and_add_up(start_engine: StartEngine) -> None:
    with start_engine() as running:
        (answer,) = running.run(make_request(PROMPTS[0]))
    assert answer.times is not None
    assert 0 <= answer.times.queued <= answer.times.first_token < 60
    assert answer.times.adapter_load == 0.0
