"""Adapters that replace norms, embeddings or the output head: PEFT's log-probabilities, and others keep theirs."""

import copy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import store_adapters
import torch
from engine_logprobs import logprobs_by_canonical_form, logprobs_by_peft, logprobs_of
from hub_adapters import write_bottleneck
from model_directories import write_tiny_model
from peft import LNTuningConfig, PeftConfig, PeftModel
from peft_adapters import adapter_files, save_peft
from peft_kinds import CONFIGS, REPLACING, lora
from running_engine import RunningEngine, make_request
from transformers import AutoModelForCausalLM, PreTrainedModel

from hotshoe.kernels.cpu import nf4_linear
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.registry import Registry
from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.config import ResidencyConfig
from hotshoe.server.engine.request import AdapterUse, Request
from hotshoe.server.model.loader import LoadedBase, load_base

StartEngine = Callable[..., RunningEngine]
Publish = Callable[..., AdapterUse]
PROMPT = [25, 68, 4, 118, 25, 9, 7, 23, 200, 3, 5, 118]


@pytest.mark.parametrize("max_step_tokens", [64, 16])
def test_what_replaces_weights_gives_peft_s_logprobs_beside_all_others(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path, max_step_tokens: int
) -> None:
    directories = {name: tmp_path / name.replace(" ", "-") for name in [*REPLACING, "lora", "dora"]}
    for name, directory in directories.items():
        save_peft(directory, copy.deepcopy(model), CONFIGS[name]())
    asked = {"max_new_tokens": 5, "logprobs": 0, "prompt_logprobs": 0}
    requests = {name: make_request(PROMPT, adapters=[publish(directories[name])], **asked) for name in directories}
    requests["base"] = make_request(PROMPT, **asked)
    with start_engine(max_step_tokens=max_step_tokens) as running:
        answers = dict(zip(requests, running.run(*requests.values()), strict=True))
    for name, answer in answers.items():
        wrapped = copy.deepcopy(model)
        if name != "base":
            wrapped = PeftModel.from_pretrained(wrapped, str(directories[name])).eval()
        expected = logprobs_by_peft(wrapped, [*PROMPT, *answer.token_ids])
        assert (logprobs_of(answer) - expected).abs().max() < 2e-5, name


def test_half_of_a_replacement_is_halfway_from_the_base(
    start_engine: StartEngine, publish: Publish, model: PreTrainedModel, tmp_path: Path
) -> None:
    directory, half = tmp_path / "whole", copy.deepcopy(model)
    save_peft(directory, copy.deepcopy(model), CONFIGS["lora with embeddings and norms of its own"]())
    whole = PeftModel.from_pretrained(copy.deepcopy(model), str(directory)).merge_and_unload()
    with torch.no_grad():
        for mine, other in zip(half.parameters(), whole.parameters(), strict=True):
            mine.copy_((mine + other) / 2)
    with start_engine() as running:
        use = publish(directory, weight=0.5)
        [answer] = running.run(make_request(PROMPT, adapters=[use], logprobs=0, prompt_logprobs=0))
    assert (logprobs_of(answer) - logprobs_by_peft(half, [*PROMPT, *answer.token_ids])).abs().max() < 2e-5


@pytest.fixture(params=["qwen3", "gemma2", "gemma3_text"])
def compiled_base(request: pytest.FixtureRequest, tmp_path: Path) -> LoadedBase:
    if nf4_linear.kernel() is None:
        pytest.skip("needs AVX512-BF16")
    write_tiny_model(tmp_path / "model", request.param, hidden_size=128, head_dim=32, vocab_size=320)
    loaded = load_base(str(tmp_path / "model"), cache=tmp_path / "bases", device="cpu", backend="cpu_nf4")
    compiled = loaded.decoder._compiled
    assert compiled is not None and compiled.layers is not None and compiled.head is not None
    return loaded


@pytest.fixture
def compiled_engine(compiled_base: LoadedBase, registry: Registry) -> Iterator[RunningEngine]:
    slots = AdapterSlots.for_base(compiled_base.weights.shape, num_slots=8, backend="cpu_nf4")
    residency = AdapterResidency(
        registry=registry, base=compiled_base.weights, slots=slots, config=ResidencyConfig(adapter_slots=8)
    )
    yield RunningEngine(compiled_base.decoder, slots=slots, residency=residency)
    residency.close()


def served_model(base: LoadedBase, tmp_path: Path) -> PreTrainedModel:
    """The base as it is served: with the dequantized weights, and a scale of its embedding as bfloat16 has it."""
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    parts = dict(model.named_modules())
    with torch.no_grad():
        for linear, shape in base.weights.shape.linears.items():
            parts[shape.module].weight.copy_(base.weights.weight(linear))
        if base.spec.scaled_embedding:
            scale = model.get_input_embeddings().embed_scale
            assert scale != scale.bfloat16()
            scale.copy_(scale.bfloat16())
    return model


def test_compiled_steps_take_them_beside_all_others(
    compiled_base: LoadedBase, compiled_engine: RunningEngine, registry: Registry, tmp_path: Path
) -> None:
    model = served_model(compiled_base, tmp_path)
    configs: dict[str, PeftConfig] = {
        "lora": lora(),
        "norms": LNTuningConfig(task_type="CAUSAL_LM", target_modules=r".*norm"),
        "head": CONFIGS["lora with a head of its own"](),
        "tokens": CONFIGS["lora with other tokens of the head"](),
    }
    uses = {}
    for name, config in configs.items():
        save_peft(tmp_path / name, copy.deepcopy(model), config)
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix != ".md"}
        record, _ = store_adapters.publish(registry, name, files, base=compiled_base.weights.shape)
        uses[name] = AdapterUse(name, name, record.digest)
    if not compiled_base.spec.block_norms:
        files = adapter_files(write_bottleneck(tmp_path / "bottleneck", model))
        bottleneck = lower_adapter(files, compiled_base.weights)
        contents = {name: path.read_bytes() for name, path in files.items()}
        record, _ = store_adapters.publish(registry, "bottleneck", contents, base=compiled_base.weights.shape)
        uses["bottleneck"] = AdapterUse("bottleneck", "bottleneck", record.digest)
    asked = {"max_new_tokens": 5, "logprobs": 0, "prompt_logprobs": 0}

    def requests(names: Sequence[str]) -> list[Request]:
        return [make_request(PROMPT, adapters=[uses[name]] if name in uses else [], **asked) for name in names]

    everyone = ["base", *uses]
    with compiled_engine as running:
        answers = dict(zip(everyone, running.run(*requests(everyone)), strict=True))
        others = ["base", "lora", "head", "tokens"]
        without_norms = dict(zip(others, running.run(*requests(others)), strict=True))
    for name, answer in answers.items():
        wrapped, tokens = copy.deepcopy(model), [*PROMPT, *answer.token_ids]
        if name in configs:
            wrapped = PeftModel.from_pretrained(wrapped, str(tmp_path / name)).eval()
        adapter = bottleneck if name == "bottleneck" else None
        expected = logprobs_by_canonical_form(model, adapter, tokens) if adapter else logprobs_by_peft(wrapped, tokens)
        assert (logprobs_of(answer) - expected).abs().max() < 0.05, name  # activations are rounded to bfloat16
    for name in others:
        assert without_norms[name].token_ids == answers[name].token_ids
