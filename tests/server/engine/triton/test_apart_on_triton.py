"""A whole engine on the Triton backend with adapters that turn inputs, or put something in place of the base's."""

import copy
from collections.abc import Callable
from pathlib import Path

import peft_adapters
import torch
from engine_logprobs import logprobs_by_canonical_form, logprobs_by_peft, logprobs_of
from hub_adapters import write_bottleneck
from peft import PeftModel
from peft_kinds import CONFIGS, REPLACING
from running_engine import RunningEngine, make_request
from tiny_models import ModelWeights
from transformers import PreTrainedModel

from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.server.engine.request import AdapterUse, Request
from hotshoe.server.errors import AdapterUnusable
from hotshoe.server.model.decoder import Decoder

StartEngine = Callable[..., RunningEngine]
Publish = Callable[..., AdapterUse]
PROMPT = [25, 68, 4, 118, 25, 9, 7, 23, 200, 3, 5, 118]
TOLERANCE = {"cpu": 3e-5, "cuda": 0.1}  # float32 in the interpreter, bfloat16 on a GPU


def test_all_of_them_give_their_package_s_logprobs_in_one_batch_and_take_each_others_slots(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, decoder: Decoder, tmp_path: Path
) -> None:
    directories = {name: tmp_path / name.replace(" ", "-") for name in [*REPLACING, "lora"]}
    for name, directory in directories.items():
        peft_adapters.save_peft(directory, copy.deepcopy(model), CONFIGS[name]())
    directories["bottleneck"] = write_bottleneck(tmp_path / "bottleneck", model, original_ln_before=True)
    bottleneck = lower_adapter(peft_adapters.adapter_files(directories["bottleneck"]), ModelWeights(model))
    asked = {"max_new_tokens": 2, "logprobs": 0, "prompt_logprobs": 0}
    requests = {name: make_request(PROMPT, adapters=[publish(directories[name])], **asked) for name in directories}
    requests["base"] = make_request(PROMPT, **asked)
    with start_engine(decoder=decoder, adapter_slots=8) as running:
        for request in list(requests.values())[:8]:
            running.engine._residency.load(request.adapters[0].key)  # else they might come one by one
        answers = dict(zip(requests, running.run(*requests.values(), timeout_seconds=200.0), strict=True))
        assert max(report.stats.distinct_adapters for report in running.reports) > 4
    for name, answer in answers.items():
        wrapped, tokens = copy.deepcopy(model), [*PROMPT, *answer.token_ids]
        if name == "bottleneck":
            expected = logprobs_by_canonical_form(model, bottleneck, tokens)
        else:
            if name != "base":
                wrapped = PeftModel.from_pretrained(wrapped, str(directories[name])).eval()
            expected = logprobs_by_peft(wrapped, tokens)
        assert (logprobs_of(answer) - expected).abs().max() < TOLERANCE[decoder.backend.device.type], name


def test_their_neighbours_draw_the_same_tokens_and_steps_are_not_recorded_again(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, decoder: Decoder, tmp_path: Path
) -> None:
    uses = {}
    for name in ("lora", "oft", "ln-tuning", "lora with a head of its own"):
        peft_adapters.save_peft(tmp_path / name.replace(" ", "-"), copy.deepcopy(model), CONFIGS[name]())
        uses[name] = publish(tmp_path / name.replace(" ", "-"))

    def request(name: str, tenant: str) -> Request:
        return make_request([5, 9, 200], max_new_tokens=3, adapters=[uses[name]], tenant=tenant)

    with start_engine(decoder=decoder, adapter_slots=2, kv_tokens=64) as running:
        graphs = running.engine._runner.graphs
        alone = {name: running.run(request(name, "a"), timeout_seconds=200.0)[0] for name in ("lora", "oft")}
        recorded = graphs.num_recorded
        beside = running.run(request("lora", "b"), request("oft", "b"), timeout_seconds=200.0)
        assert [answer.token_ids for answer in beside] == [answer.token_ids for answer in alone.values()]
        for name in ("ln-tuning", "lora with a head of its own"):
            after = running.run(request(name, "c"), request("lora", "c"), timeout_seconds=200.0)
            assert [answer.error for answer in after] == [None, None]
            assert after[1].token_ids == alone["lora"].token_ids
            assert after[0].token_ids != alone["lora"].token_ids
        assert graphs.num_recorded <= recorded + 1  # of two rows
        slots, residency = running.engine._slots, running.engine._residency
        residency.load(uses["oft"].digest, pin=True)
        placed = slots._placed[residency._state.find(uses["oft"].digest).slot].adapter
        for rotations in placed.rotations.values():
            for matrices in rotations.inputs:
                matrices.fill_(torch.nan)
        answer, failed = running.run(request("lora", "d"), request("oft", "d"), timeout_seconds=200.0)
        assert answer.token_ids == alone["lora"].token_ids and answer.error is None
        assert isinstance(failed.error, AdapterUnusable)
