"""Adapters with which the model gives numbers that are not finite: they harm their own requests, and nobody else."""

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft_adapters
import pytest
from running_engine import RunningEngine, make_request
from transformers import PreTrainedModel

from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.registry import Registry
from hotshoe.server.adapters import adapter_reader
from hotshoe.server.engine.request import AdapterUse
from hotshoe.server.errors import AdapterUnusable

StartEngine = Callable[..., RunningEngine]
Publish = Callable[..., AdapterUse]
RANDOM = random.Random(1)
PROMPTS = [[RANDOM.randrange(256) for _ in range(length)] for length in (13, 1, 40, 6)]
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def test_numbers_that_are_not_finite_harm_only_their_own_request(
    start_engine: StartEngine,
    publish: Publish,
    model: PreTrainedModel,
    tmp_path: Path,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = publish(peft_adapters.write_lora(tmp_path / "sound", model, seed=2, targets=ALL))
    writers = {"lora": peft_adapters.write_lora, "prefix": peft_adapters.write_prefix, "ia3": peft_adapters.write_ia3}
    poisoned = [publish(write(tmp_path / name, model, seed=9)) for name, write in writers.items()]
    poison_loads_of([registry.adapter_files(use.digest) for use in poisoned], monkeypatch)
    good = [make_request(p, max_new_tokens=16, adapters=a) for p in PROMPTS for a in ([], [sound])]
    bad = [make_request(p, max_new_tokens=16, adapters=[use], n=2) for p in PROMPTS for use in poisoned]
    with start_engine(kv_tokens=256) as running:
        expected = [answer.token_ids for answer in running.run(*good)]
        for _ in range(3):  # so that pages are used again
            again = [make_request(r.prompt_token_ids, max_new_tokens=16, adapters=r.adapters, tenant="b") for r in good]
            fails = [make_request(r.prompt_token_ids, max_new_tokens=16, adapters=r.adapters, n=2) for r in bad]
            mixed = [request for pair in zip(fails, again, strict=False) for request in pair]
            running.run(*mixed, *fails[len(again) :])
            assert [running.answers[r.request_id, 0].token_ids for r in again] == expected
            for request in fails:
                for answer in running.all_answers(request):
                    assert isinstance(answer.error, AdapterUnusable) and answer.terminals == 1, request
                    assert answer.token_ids == []
        running.engine.check_integrity()


@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_pages_with_numbers_that_are_not_finite_are_cleared_before_anyone_gets_them(
    start_engine: StartEngine,
    publish: Publish,
    model: PreTrainedModel,
    tmp_path: Path,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    write = {"lora": peft_adapters.write_lora, "prefix": peft_adapters.write_prefix}[kind]
    use = publish(write(tmp_path / kind, model))
    poison_loads_of([registry.adapter_files(use.digest)], monkeypatch)
    with start_engine(kv_tokens=64) as running:
        layers = running.engine._runner._kv.layers
        (expected,) = running.run(make_request(PROMPTS[3], max_new_tokens=3))
        (failed,) = running.run(make_request(PROMPTS[2], adapters=[use]))
        assert isinstance(failed.error, AdapterUnusable)
        assert not all(bool(layer.isfinite().all()) for layer in layers), "the bad numbers had reached the cache"
        (answer,) = running.run(make_request(PROMPTS[3], max_new_tokens=3, tenant="b"))
        assert answer.token_ids == expected.token_ids
        assert all(bool(layer.isfinite().all()) for layer in layers)


def test_an_adapter_that_spoiled_an_answer_is_refused_until_it_is_unloaded(
    start_engine: StartEngine,
    publish: Publish,
    model: PreTrainedModel,
    tmp_path: Path,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sound = publish(peft_adapters.write_lora(tmp_path / "sound", model, seed=2))
    spoiled = publish(peft_adapters.write_lora(tmp_path / "spoiled", model, seed=9))
    suspect = publish(peft_adapters.write_lora(tmp_path / "suspect", model, seed=8))
    with monkeypatch.context() as poisoned:
        poison_loads_of([registry.adapter_files(use.digest) for use in (spoiled, suspect)], poisoned)
        with start_engine() as running:
            rows = running.total("rows")
            (first,) = running.run(make_request(PROMPTS[3], adapters=[spoiled]))
            assert isinstance(first.error, AdapterUnusable) and running.total("rows") > rows
            rows = running.total("rows")
            (second,) = running.run(make_request(PROMPTS[3], adapters=[spoiled]))
            assert isinstance(second.error, AdapterUnusable) and "until it is unloaded" in str(second.error)
            assert running.total("rows") == rows, "nothing was computed for it"
            (stacked,) = running.run(make_request(PROMPTS[3], adapters=[sound, suspect]))
            assert isinstance(stacked.error, AdapterUnusable)
            (fine,) = running.run(make_request(PROMPTS[3], adapters=[sound]))
            assert fine.error is None, "it is not sure which of a stack was at fault"
            poisoned.undo()
            running.engine._residency.unload(spoiled.digest)
            (repaired,) = running.run(make_request(PROMPTS[3], adapters=[spoiled]))
            assert repaired.error is None


def poison_loads_of(poisoned: Sequence[Mapping[str, Path]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads adapters with these files full of NaN, past every validation."""
    lower = adapter_reader.lower_adapter

    def lower_poisoned(files: Mapping[str, Path], *args: Any, **kwargs: Any) -> LoweredAdapter:
        adapter = lower(files, *args, **kwargs)
        if files in poisoned:
            for tensor in adapter.tensors():
                tensor.fill_(float("nan"))
        return adapter

    monkeypatch.setattr(adapter_reader, "lower_adapter", lower_poisoned)
    monkeypatch.setattr(adapter_reader, "check_finite", lambda adapter: None)
