"""LORA's variants beyond what equals PEFT's forward: what is refused and why, and what it says of ranks."""

import json

import pytest
import torch
from peft_adapters import adapter_files, save_peft, write_lora
from peft_kinds import CONFIGS
from tiny_models import ModelWeights, base_shape, tiny_llama

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.kind import inspect_adapter, lower_adapter
from hotshoe.registry.validation import AdapterLimits

Q_PROJ = LinearId(0, "q_proj")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"init_lora_weights": "pissa_niter_4"}, "random projections"),
        ({"init_lora_weights": "corda"}, "covariances of its training data"),
        ({"init_lora_weights": "lora_ga"}, "gradients of its training data"),
        ({"init_lora_weights": "loftq"}, "quantized by itself"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "a base of more layers"),
        ({"target_parameters": ["mlp.experts.down_proj"]}, "parameters by their names"),
        ({"use_qalora": True}, "GPTQ"),
        ({"arrow_config": {"top_k": 1}}, "for each token"),
        ({"kasa_config": {}, "alora_invocation_tokens": [1]}, "no such variant together"),
    ],
)
def test_a_variant_that_has_no_exact_form_is_refused_with_the_reason(change, problem, tmp_path):
    path = write_lora(tmp_path, tiny_llama()) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InvalidAdapter, match=problem) as refusal:
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))
    assert refusal.value.field == next(iter(change))


@pytest.mark.parametrize("name", ["pissa", "kasa", "dora from pissa"])
def test_equal_singular_values_leave_open_what_was_taken_out(name, tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS[name]())
    with pytest.raises(IncompatibleAdapter, match=r"layers\.0\.q_proj's singular values .* are equal"):
        lower_adapter(adapter_files(tmp_path), weights_with(torch.eye(64)))


@pytest.mark.parametrize("name", ["olora", "dora from olora"])
def test_dependent_columns_leave_open_what_was_taken_out(name, tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS[name]())
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(2))
    weight[:, 3] = 2 * weight[:, 1]
    with pytest.raises(IncompatibleAdapter, match=r"4 independent first columns of layers\.0\.q_proj"):
        lower_adapter(adapter_files(tmp_path), weights_with(weight))


@pytest.mark.parametrize("name", ["pissa", "kasa"])
def test_singular_values_that_are_nothing_are_taken_out_or_left(name, tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS[name]())
    column, row = torch.randn(2, 64, 1, generator=torch.Generator().manual_seed(2))
    lowered = lower_adapter(adapter_files(tmp_path), weights_with(column @ row.T)).linears[Q_PROJ]
    taken = lowered.b[:, 4:] @ lowered.a[4:]
    assert torch.allclose(taken, -(column @ row.T) if name == "pissa" else torch.zeros(64, 64), atol=1e-4)


@pytest.mark.parametrize("name", ["pissa", "olora", "kasa"])
def test_what_was_taken_out_counts_as_rank(name, tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS[name]())
    files, shape = adapter_files(tmp_path), base_shape(tiny_llama())
    assert inspect_adapter(files, shape, AdapterLimits(max_rank=8)).rank == 8
    with pytest.raises(InvalidAdapter, match="r: found rank 8, expected at most 7"):
        inspect_adapter(files, shape, AdapterLimits(max_rank=7))


def weights_with(q_proj: torch.Tensor) -> ModelWeights:
    """Those of a tiny Llama, with that weight in its first layer."""
    model = tiny_llama()
    with torch.no_grad():
        model.get_submodule("model.layers.0.self_attn.q_proj").weight.copy_(q_proj)
    return ModelWeights(model)
