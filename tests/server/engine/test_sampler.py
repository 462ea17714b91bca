"""The sampler against a naive definition: sort everything, filter one rule after the other, invert the distribution."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from hotshoe.server.engine.request import SamplingParams
from hotshoe.server.engine.sampler import CANDIDATES, MORE_CANDIDATES, SamplingState, sample, uniform


def naive_kept(logits: Tensor, params: SamplingParams) -> list[tuple[int, float]]:
    """(token, probability) of the filtered distribution, likeliest first, by the definition and in float64."""
    order = sorted(range(len(logits)), key=lambda token: (-float(logits[token]), token))
    weights = [math.exp((float(logits[token]) - float(logits[order[0]])) / params.temperature) for token in order]
    if params.top_k:
        order, weights = order[: params.top_k], weights[: params.top_k]
    if params.top_p < 1:
        total, before, count = sum(weights), 0.0, 0
        while count < len(weights) and before < params.top_p * total:
            before += weights[count]
            count += 1
        order, weights = order[:count], weights[:count]
    kept = [(token, w) for token, w in zip(order, weights, strict=True) if w >= params.min_p * weights[0]]
    total = sum(w for _, w in kept)
    return [(token, w / total) for token, w in kept]


def naive_draw(logits: Tensor, params: SamplingParams, u: float) -> tuple[int, float]:
    """The token at `u`, and how far `u` is from the nearest border between two tokens."""
    cumulated, border = 0.0, math.inf
    drawn = None
    for token, probability in naive_kept(logits, params):
        cumulated += probability
        border = min(border, abs(u - cumulated))
        if drawn is None and u < cumulated:
            drawn = token
    return (token if drawn is None else drawn), border


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, SamplingParams]:
    vocab = draw(st.sampled_from([1, 2, 5, 40, CANDIDATES, CANDIDATES + 1, 700, MORE_CANDIDATES + 300]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    logits = torch.randn(vocab, generator=generator) * draw(st.sampled_from([0.0, 0.1, 2.0, 30.0]))
    if draw(st.booleans()):
        logits = logits.round()  # many are equal
    params = SamplingParams(
        temperature=draw(st.sampled_from([1e-6, 0.3, 1.0, 5.0])),
        top_k=draw(st.sampled_from([0, 1, 3, 50, CANDIDATES, CANDIDATES + 5, MORE_CANDIDATES + 1, 10_000])),
        top_p=draw(st.sampled_from([1e-6, 0.2, 0.7, 0.95, 0.999, 1.0])),
        min_p=draw(st.sampled_from([0.0, 0.01, 0.3, 1.0])),
        seed=draw(st.integers(0, 2**64 - 1)),
    )
    return logits, params


@given(cases())
@settings(max_examples=100, deadline=None)
def test_draws_equal_the_naive_definition(case: tuple[Tensor, SamplingParams]) -> None:
    logits, params = case
    state = SamplingState(params)
    expected, border = naive_draw(logits, params, uniform(params.seed, 0, 0))
    (token,) = sample(logits[None], [state])
    kept = dict(naive_kept(logits, params))
    assert token in kept or any(math.isclose(float(logits[token]), float(logits[k]), abs_tol=1e-5) for k in kept)
    if border > 1e-5 and not _on_an_edge(logits, params):
        assert token == expected


@given(cases(), st.sampled_from([1, 3, 200, CANDIDATES - 1, CANDIDATES, CANDIDATES + 1, 600]))
@settings(max_examples=60, deadline=None)
def test_impossible_tokens_are_as_if_they_were_not_there(case: tuple[Tensor, SamplingParams], possible: int) -> None:
    logits, params = case
    allowed = torch.randperm(len(logits), generator=torch.Generator().manual_seed(possible))[:possible].sort().values
    banned = sorted(set(range(len(logits))) - set(allowed.tolist()))
    state = SamplingState(params, ending_ids=banned, min_new_tokens=1)
    expected, border = naive_draw(logits[allowed], params, uniform(params.seed, 0, 0))
    (token,) = sample(logits[None], [state])
    assert token in allowed
    if border > 1e-5 and not _on_an_edge(logits[allowed], params):
        assert token == int(allowed[expected])


def _on_an_edge(logits: Tensor, params: SamplingParams) -> bool:
    """Whether rounding may move the border of a filter: then another number of tokens is as right."""
    counts = set()
    for nudge in (1 - 1e-6, 1.0, 1 + 1e-6):
        nudged = SamplingParams(
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=min(1.0, params.top_p * nudge),
            min_p=min(1.0, params.min_p * nudge),
        )
        counts.add(len(naive_kept(logits, nudged)))
    return len(counts) > 1


@pytest.mark.parametrize("seed", range(20))
def test_filters_keep_what_transformers_keeps(seed: int) -> None:
    logits = torch.randn(1, 400, generator=torch.Generator().manual_seed(seed)) * 3
    params = SamplingParams(temperature=0.8, top_k=60, top_p=0.9, min_p=0.02)
    warpers = LogitsProcessorList(
        [TemperatureLogitsWarper(0.8), TopKLogitsWarper(60), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)]
    )
    theirs = warpers(torch.zeros(1, 0, dtype=torch.long), logits.clone())[0].softmax(-1)
    kept = naive_kept(logits[0], params)
    assert {token for token, _ in kept} == set(theirs.nonzero()[:, 0].tolist())
    for token, probability in kept:
        assert math.isclose(probability, float(theirs[token]), rel_tol=1e-4)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -5.0]])
    counts = Counter(
        sample(logits, [SamplingState(SamplingParams(temperature=0.7, top_p=0.99, seed=seed))])[0]
        for seed in range(8_000)
    )
    expected = dict(naive_kept(logits[0], SamplingParams(temperature=0.7, top_p=0.99)))
    assert set(counts) == set(expected)
    chi_squared = sum((counts[token] - 8_000 * p) ** 2 / (8_000 * p) for token, p in expected.items())
    assert chi_squared < 20, f"{chi_squared} with {len(expected) - 1} degrees of freedom"


def test_a_flat_distribution_reaches_beyond_the_candidates() -> None:
    logits = torch.zeros(1, 2 * MORE_CANDIDATES)
    drawn = {sample(logits, [SamplingState(SamplingParams(temperature=1.0, seed=seed))])[0] for seed in range(200)}
    assert max(drawn) > MORE_CANDIDATES and min(drawn) < MORE_CANDIDATES


def test_uniforms_are_uniform_and_all_different() -> None:
    numbers = [uniform(seed, answer, position) for seed in range(20) for answer in range(10) for position in range(100)]
    assert len(set(numbers)) == len(numbers) and 0.0 <= min(numbers) and max(numbers) < 1.0
    counts, _ = np.histogram(numbers, bins=50, range=(0, 1))
    assert ((counts - 400) ** 2 / 400).sum() < 90  # 49 degrees of freedom


def test_rows_are_drawn_as_if_alone() -> None:
    logits = torch.randn(6, 1000, generator=torch.Generator().manual_seed(3)) * 2
    params = [
        SamplingParams(),
        SamplingParams(temperature=1.0, seed=5),
        SamplingParams(temperature=0.5, top_k=7, seed=6),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(temperature=2.0, top_p=0.6, seed=7),
        SamplingParams(temperature=1.0, logit_bias={3: 50.0}),
    ]
    states = [SamplingState(p, prompt=[1, 2, 3]) for p in params]
    before = logits.clone()
    together = sample(logits, states)
    assert together == [sample(logits[i : i + 1], [states[i]])[0] for i in range(6)]
    assert torch.equal(logits, before), "the model's logits are left as they are, for log-probabilities"


def edited(params: SamplingParams, logits: Tensor, prompt: list[int], output: list[int]) -> Tensor:
    state = SamplingState(params, prompt=prompt)
    for token in output:
        state.add(token)
    row = logits.clone()
    state.edit(row)
    return row


def test_repetition_penalty_is_that_of_transformers() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    ours = edited(SamplingParams(repetition_penalty=1.7), logits, [1, 2, 2, 3], [3, 40])
    theirs = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[1, 2, 2, 3, 3, 40]]), logits[None].clone())[0]
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, logits)


def test_presence_and_frequency_count_the_answer_only() -> None:
    logits = torch.zeros(6)
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    row = edited(params, logits, prompt=[0, 0, 1], output=[1, 2, 2, 2])
    torch.testing.assert_close(row, torch.tensor([0.0, -0.75, -1.25, 0.0, 0.0, 0.0]))


def test_bias_comes_before_penalties() -> None:
    row = edited(SamplingParams(logit_bias={1: 3.0}, repetition_penalty=2.0), torch.tensor([0.0, 1.0]), [1], [])
    torch.testing.assert_close(row, torch.tensor([0.0, 2.0]))


def test_an_answer_does_not_end_before_its_minimum() -> None:
    logits = torch.tensor([[5.0, 1.0, 4.0, 0.0]])
    for temperature in (0.0, 1.0):
        state = SamplingState(SamplingParams(temperature=temperature), ending_ids=[0, 2], min_new_tokens=2)
        for _ in range(2):
            (token,) = sample(logits, [state])
            assert token in (1, 3)
            state.add(token)
        assert not state.edits_logits
    assert sample(logits, [SamplingState(SamplingParams(), ending_ids=[0, 2], min_new_tokens=0)]) == [0]
