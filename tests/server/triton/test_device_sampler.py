"""Drawing on the device: the tokens that the sampler draws, and -1 only where its first candidates do not decide."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hotshoe.kernels.triton.logit_stats import logit_stats
from hotshoe.server.engine.device_sampler import draw_candidates, draw_rows, sampling_riders
from hotshoe.server.engine.request import SamplingParams
from hotshoe.server.engine.sampler import SamplingState, sample
from hotshoe.server.engine.step_plan import Chunk

PARAMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cold": {"temperature": 0.2},
    "top_k": {"top_k": 5},
    "wide top_k": {"top_k": 1000},
    "top_p": {"top_p": 0.7},
    "min_p": {"min_p": 0.1},
    "all": {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.02},
}


def chunk_of(state: SamplingState, *, draws: bool = True) -> Chunk:
    return Chunk(SimpleNamespace(sampling=state), 0, 1, num_logits=1, draws=draws, decodes=True)  # type: ignore[arg-type]


def states(fields: dict[str, Any], count: int) -> list[SamplingState]:
    params = SamplingParams(**{"temperature": 1.0, **fields})
    return [SamplingState(dataclasses.replace(params, seed=seed)) for seed in range(count)]


@pytest.mark.parametrize("vocab_size", [100, 2000])
@pytest.mark.parametrize("kind", PARAMS)
def test_tokens_are_the_samplers(kind: str, vocab_size: int, device: torch.device) -> None:
    logits = 4 * torch.randn(24, vocab_size, generator=torch.Generator().manual_seed(1))
    logits[:8] = logits[:8].round()  # many equal ones
    rows = states(PARAMS[kind], len(logits))
    draws = draw_rows(
        logits.to(device), torch.from_numpy(sampling_riders([chunk_of(s) for s in rows])).to(device), drawn=True
    )
    expected = sample(logits, rows)
    assert [d.drawn for d in draws if d.drawn is not None] == [
        token for d, token in zip(draws, expected, strict=True) if d.drawn is not None
    ]
    decided = sum(draw.drawn is not None for draw in draws)
    assert decided == 0 if kind == "wide top_k" and vocab_size == 2000 else decided >= 12


def test_a_row_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    logits = torch.randn(6, 2000, generator=torch.Generator().manual_seed(2)).to(device)
    riders = torch.from_numpy(sampling_riders([chunk_of(s) for s in states({"top_p": 0.5}, 6)])).to(device)
    _, _, totals = logit_stats(logits, riders[:, 0].float())
    together = draw_candidates(logits, totals, riders)
    alone = [draw_candidates(logits[i : i + 1], totals[i : i + 1], riders[i : i + 1]) for i in range(6)]
    assert torch.equal(torch.cat(alone), together)


def test_greedy_rows_and_rows_that_are_not_finite(device: torch.device) -> None:
    logits = torch.randn(3, 300, generator=torch.Generator().manual_seed(3)).to(device)
    logits[1, 7], logits[2, 250] = 50.0, float("nan")
    greedy = SamplingState(SamplingParams())
    riders = torch.from_numpy(sampling_riders([chunk_of(greedy), chunk_of(greedy, draws=False), chunk_of(greedy)]))
    draws = draw_rows(logits, riders.to(device), drawn=False)
    assert [draw.finite for draw in draws] == [True, True, False]
    assert draws[1].greedy == 7 and draws[0].greedy == int(logits[0].argmax())
    assert all(draw.drawn is None for draw in draws)
