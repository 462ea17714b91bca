"""A whole engine on the Triton backend: the reference engine's tokens, with adapters of all kinds in its batches."""

from collections.abc import Callable
from pathlib import Path

import peft_adapters
import pytest
from running_engine import RunningEngine, make_request
from transformers import PreTrainedModel

from hotshoe.server.engine.request import AdapterUse, Request, SamplingParams
from hotshoe.server.engine.runner import DeviceRunner
from hotshoe.server.errors import AdapterUnusable
from hotshoe.server.model.decoder import Decoder

StartEngine = Callable[..., RunningEngine]
Publish = Callable[..., AdapterUse]
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
CONFIG = {"kv_tokens": 64, "page_tokens": 4, "max_running_requests": 4}


def requests_of(uses: dict[str, AdapterUse]) -> list[Request]:
    drawn = SamplingParams(temperature=0.9, top_p=0.9, seed=5)
    return [
        make_request([5, 9, 200, 31, 7, 88], max_new_tokens=3, adapters=[uses["lora"]]),
        make_request([77, 12], max_new_tokens=3, adapters=[uses["ia3"]], sampling=drawn, logprobs=2),
        make_request([8], max_new_tokens=3, adapters=[uses["prefix"], uses["lora"]], sampling=SamplingParams(
            temperature=1.5, repetition_penalty=1.3, seed=6)),
        make_request([1, 2, 3], max_new_tokens=3, adapters=[uses["prompt"]]),
        make_request([1, 2, 3], max_new_tokens=3),
    ]  # fmt: skip


def test_it_gives_the_references_tokens(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, decoder: Decoder, tmp_path: Path
) -> None:
    exact = decoder.backend.device.type == "cpu"  # a GPU computes in bfloat16, and may draw other tokens
    uses = {
        "lora": publish(peft_adapters.write_lora(tmp_path / "lora", model, rank=24, targets=ALL, seed=1)),
        "ia3": publish(peft_adapters.write_ia3(tmp_path / "ia3", model, seed=3)),
        "prefix": publish(peft_adapters.write_prefix(tmp_path / "prefix", model, tokens=3, seed=4)),
        "prompt": publish(peft_adapters.write_prompt(tmp_path / "prompt", model, tokens=2, seed=5)),
    }
    with start_engine(**CONFIG) as running:
        expected = running.run(*requests_of(uses))
    with start_engine(decoder=decoder, **CONFIG) as running:
        runner = running.engine._runner
        assert isinstance(runner, DeviceRunner) and runner.graphs is not None
        answers = running.run(*requests_of(uses), timeout_seconds=200.0)
        assert runner.graphs.num_recorded > 0
    assert all(answer.error is None for answer in answers)
    assert [len(answer.token_ids) for answer in answers] == [3] * len(answers)
    if not exact:
        return
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
    for ours, theirs in zip(answers[1].logprobs, expected[1].logprobs, strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-3)


def test_numbers_that_are_not_finite_harm_only_their_own_request(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, decoder: Decoder, tmp_path: Path
) -> None:
    sound, bad = (publish(peft_adapters.write_lora(tmp_path / f"{seed}", model, seed=seed)) for seed in (7, 8))
    good = {"prompt": [5, 9, 200], "max_new_tokens": 2, "adapters": [sound]}
    with start_engine(decoder=decoder, kv_tokens=32, page_tokens=4, max_running_requests=2) as running:
        (expected,) = running.run(make_request(**good), timeout_seconds=200.0)
        slots, residency = running.engine._slots, running.engine._residency
        residency.load(bad.digest, pin=True)
        for update in slots.tables._sites.values():
            for unit in slots._placed[residency._state.find(bad.digest).slot].adapter.units:
                update.table.b[unit * 16 : unit * 16 + 16] = float("inf")
        failing = make_request([1, 2, 3, 4, 5], max_new_tokens=2, adapters=[bad])
        (answer, failed) = running.run(make_request(**good, tenant="b"), failing, timeout_seconds=200.0)
        assert answer.token_ids == expected.token_ids and answer.error is None
        assert isinstance(failed.error, AdapterUnusable)
        (again,) = running.run(make_request(**good, tenant="c"), timeout_seconds=200.0)  # in pages that were its own
        assert again.token_ids == expected.token_ids
