"""What the load generator asks, and the figures that it makes of the answers."""

import asyncio

import grpc
import pytest
from scripted_server import Failure, ScriptedServer

from hotshoe.clients.bench import BenchPlan, Pattern, percentile, run_bench
from hotshoe.protos.v1.generation_pb2 import (
    GenerateResponse,
    GetModelInfoResponse,
    StreamGenerateResponse,
    Token,
    TokenizeResponse,
)
from hotshoe.protos.v1.residency_pb2 import LoadAdapterResponse, ResidentAdapter

STREAM = "GenerationService/StreamGenerate"
LOAD = "ResidencyService/LoadAdapter"


@pytest.fixture
def server(scripted: ScriptedServer) -> ScriptedServer:
    ready = LoadAdapterResponse(stage=LoadAdapterResponse.STAGE_READY, adapter=ResidentAdapter(name="a"))
    token = StreamGenerateResponse(tokens=[Token(token_id=1)])
    last = StreamGenerateResponse(tokens=[Token(token_id=2), Token(token_id=3)], final=GenerateResponse())
    info = GetModelInfoResponse(base_model="b", max_resident_adapters=3, max_sequence_length=2048)
    scripted.answer("GenerationService/GetModelInfo", info)
    scripted.answer("GenerationService/Tokenize", TokenizeResponse(token_ids=range(10, 100)))
    scripted.answer(LOAD, [ready])
    scripted.answer(STREAM, [token, last])
    return scripted


def bench(server: ScriptedServer, **plan):
    return asyncio.run(run_bench(server.address, BenchPlan(**plan), lambda *_: None))


def references(server: ScriptedServer) -> list[str]:
    return [",".join(one.reference for one in call.request.adapters) for call in server.calls(STREAM)]


def test_prompts_have_the_length_asked_and_never_repeat(server: ScriptedServer) -> None:
    bench(server, concurrency=(1, 4), prompt_tokens=7, rounds=3, warmup=1, requests=5, new_tokens=9)
    requests = [call.request for call in server.calls(STREAM)]
    prompts = [tuple(request.token_ids.ids) for request in requests]
    assert len(prompts) == len(set(prompts)) == 2 * 4 * 5
    assert {len(prompt) for prompt in prompts} == {7}
    assert all(10 <= token < 100 for prompt in prompts for token in prompt)
    assert {(r.stopping.max_new_tokens, r.stopping.ignore_eos, r.sampling.temperature) for r in requests} == {
        (9, True, 0.0)
    }


def test_the_same_seed_asks_the_same(server: ScriptedServer) -> None:
    plan = {"concurrency": (1,), "rounds": 2, "warmup": 0, "adapters": ("a", "b", "c"), "pattern": Pattern.ZIPF}
    for seed in (1, 1, 2):
        bench(server, seed=seed, **plan)
    asked = [call.SerializeToString() for call in server.calls(STREAM)]
    assert asked[:2] == asked[2:4] != asked[4:]


def test_round_robin_gives_each_request_the_next_adapter_across_rounds(server: ScriptedServer) -> None:
    bench(server, concurrency=(1,), adapters=("a", "base", "c"), rounds=6, warmup=0)
    assert references(server) == ["a", "", "c", "a", "", "c"]


def test_fixed_keeps_each_stream_on_its_adapter(server: ScriptedServer) -> None:
    bench(server, concurrency=(2,), adapters=("a", "b", "c"), pattern=Pattern.FIXED, rounds=1, warmup=0, requests=8)
    assert sorted(references(server)) == ["a"] * 4 + ["b"] * 4


def test_zipf_prefers_the_first_adapters(server: ScriptedServer) -> None:
    names = ("a", "b", "c", "d")
    bench(server, concurrency=(4,), adapters=names, pattern=Pattern.ZIPF, zipf_exponent=2.0, rounds=1, requests=200)
    counts = [references(server).count(name) for name in names]
    assert counts == sorted(counts, reverse=True) and counts[0] > 200


def test_adapters_are_loaded_before_the_clock_starts_as_far_as_they_fit(server: ScriptedServer) -> None:
    bench(server, concurrency=(1,), adapters=("a", "base", "b", "c", "d"), rounds=1, warmup=0)
    assert [call.reference for call in server.calls(LOAD)] == ["a", "b", "c"]


def test_figures_are_of_the_tokens_that_came(server: ScriptedServer) -> None:
    report = bench(server, concurrency=(1, 2), rounds=3, warmup=2)
    assert [(level.concurrency, level.requests, level.generated_tokens) for level in report.levels] == [
        (1, 3, 9),
        (2, 6, 18),
    ]
    for level in report.levels:
        assert len(level.rounds) == 3
        rates = sorted(figures.tokens_per_second for figures in level.rounds)
        assert level.median.tokens_per_second == rates[1] > 0
        assert level.median.ttft_p50 is not None and level.median.ttft_p99 >= level.median.ttft_p50 > 0
        assert level.median.inter_token_p50 is not None and level.median.inter_token_p50 > 0
    assert report.server["base_model"] == "b" and report.num_errors == 0


def test_a_failed_request_is_counted_by_its_class_and_gives_no_times(server: ScriptedServer) -> None:
    server.answer(STREAM, Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "all slots are taken"))
    report = bench(server, concurrency=(2,), rounds=2, warmup=0)
    [level] = report.levels
    assert level.errors == {"ResourceExhausted": 4} and report.num_errors == 4
    assert level.first_error == "all slots are taken"
    assert level.median.ttft_p50 is None and level.median.tokens_per_second == 0


def test_prompts_too_short_to_differ_are_refused(server: ScriptedServer) -> None:
    with pytest.raises(ValueError, match="prompt_tokens: 1 are too few"):
        bench(server, concurrency=(1,), prompt_tokens=1, rounds=200)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.5, None),
        ([3.0], 0.99, 3.0),
        ([1.0, 3.0, 2.0], 0.5, 2.0),
        ([0.0, 10.0], 0.99, 9.9),
        ([1.0, 2.0], 0.0, 1.0),
    ],
)
def test_percentiles_are_interpolated(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == pytest.approx(expected)


@pytest.mark.parametrize(
    "wrong", [{"rounds": 0}, {"new_tokens": 0}, {"concurrency": ()}, {"concurrency": (0,)}, {"warmup": -1}]
)
def test_a_senseless_plan_is_refused_by_name(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        BenchPlan(**wrong)


@pytest.mark.parametrize("exponent", [-1.0, float("nan"), float("inf")])
def test_an_exponent_that_gives_no_weights_is_refused(exponent: float) -> None:
    with pytest.raises(ValueError, match="zipf_exponent: must be a number of at least 0"):
        BenchPlan(zipf_exponent=exponent)
