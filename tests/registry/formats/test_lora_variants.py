"""LORA's variants beyond what equals PEFT's forward: what is refused and why, and what it says of ranks."""

import json

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora.gptq import GPTQLoraLinear
from peft_adapters import adapter_files, save_peft, write_lora
from peft_kinds import CONFIGS
from safetensors.torch import save_file
from tiny_models import ModelWeights, base_shape, tiny_llama

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter
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
        ({"use_qalora": True, "kasa_config": {}}, "no such variant together"),
        ({"use_dora": True, "velora_config": {}}, "expected false"),
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


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"target_parameters": ["mlp.experts.down_proj"]}, IncompatibleAdapter, "target_parameters: selects no weight"),
        ({"target_parameters": ["norm.weight"]}, InvalidAdapter, r"target_parameters: selects model\.norm\.weight"),
        ({"target_parameters": ["lm_head.weight"]}, InvalidAdapter, "target_parameters: selects lm_head.weight"),
        (
            {"target_parameters": ["q_proj.weight"]},
            InvalidAdapter,
            r"selects layers\.0\.q_proj, as target_modules does",
        ),
        ({"target_modules": [], "lora_dropout": 0.1}, InvalidAdapter, "lora_dropout: expected 0"),
        ({"target_modules": [], "use_dora": True}, InvalidAdapter, "target_parameters: expected none beside a variant"),
        ({"target_modules": [], "bias": "all"}, InvalidAdapter, "bias: expected none"),
    ],
)
def test_parameters_that_are_not_adapted_are_refused_by_name(change, error, problem, tmp_path):
    path = write_lora(tmp_path, tiny_llama()) / "adapter_config.json"
    config = json.loads(path.read_text()) | {"target_parameters": ["q_proj.weight", "v_proj.weight"]}
    path.write_text(json.dumps(config | change))
    with pytest.raises(error, match=problem):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))


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


@pytest.mark.parametrize("is_stabilized", [False, True])
def test_qalora_is_what_peft_computes_beside_a_quantized_linear(is_stabilized, tmp_path):
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules=["q_proj"],
        use_qalora=True,
        qalora_group_size=8,
        use_rslora=is_stabilized,
    )
    generator = torch.Generator().manual_seed(4)
    a, b = torch.randn(4, 8, generator=generator), torch.randn(64, 4, generator=generator)
    linear = torch.nn.Linear(64, 64, bias=False)  # PEFT only calls it
    theirs = GPTQLoraLinear(linear, "default", config, r=4, lora_alpha=config.lora_alpha).eval()
    theirs.lora_A["default"].weight.data = a
    theirs.lora_B["default"].weight.data = b
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    config.layers_to_transform = [0]
    config.save_pretrained(tmp_path)
    save_file({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}, tmp_path / "adapter_model.safetensors")
    lowered = lower_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama())).linears[Q_PROJ]
    x = torch.randn(3, 64, generator=generator)
    with torch.no_grad():
        assert torch.allclose(linear(x) + x @ lowered.a.T @ lowered.b.T, theirs(x), rtol=1e-5, atol=1e-4)
        assert not torch.allclose(linear(x), theirs(x), atol=1.0)


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"bias": "all"}, InvalidAdapter, "bias: expected none"),
        ({"lora_bias": True}, InvalidAdapter, "lora_bias: expected false"),
        ({"init_lora_weights": "mica"}, InvalidAdapter, "init_lora_weights: expected true or false"),
        ({"qalora_group_size": 24}, IncompatibleAdapter, "24 does not divide 64"),
        ({}, IncompatibleAdapter, r"found shape \[8, 64\], expected \[any, 4\]"),
    ],
)
def test_qalora_with_what_peft_ignores_beside_it_is_refused(change, error, problem, tmp_path):
    path = write_lora(tmp_path, tiny_llama()) / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_qalora": True} | change))
    with pytest.raises(error, match=problem):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))


def weights_with(q_proj: torch.Tensor) -> ModelWeights:
    """Those of a tiny Llama, with that weight in its first layer."""
    model = tiny_llama()
    with torch.no_grad():
        model.get_submodule("model.layers.0.self_attn.q_proj").weight.copy_(q_proj)
    return ModelWeights(model)
