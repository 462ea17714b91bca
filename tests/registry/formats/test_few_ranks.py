"""ADALORA as training leaves it, and VBLORA as it is saved small: tensors of no rank, and of small integers."""

import json

import pytest
import torch
from canonical import canonical_logits
from peft import AdaLoraConfig, PeftModel, VBLoRAConfig
from peft_adapters import adapter_files, save_peft
from peft_kinds import of
from safetensors.torch import load_file, save_file
from tiny_models import ModelWeights, base_shape, tiny_llama

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter

TOKENS = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(5))


def save_cut(directory, kept):
    """An ADALORA whose linears keep these of their four ranks, by name; others the first and the third."""
    config = of(AdaLoraConfig, init_r=4, target_r=2, total_step=10, lora_alpha=50)
    model = save_peft(directory, tiny_llama(), config)
    names = [name.removeprefix("base_model.model.") for name, _ in model.named_parameters() if "lora_E" in name]
    model.peft_config["default"].rank_pattern = {
        name: next((ranks for part, ranks in kept.items() if part in name), [True, False, True, False])
        for name in names
    }
    model.save_pretrained(directory)


@torch.no_grad()
def assert_equal_to_peft(directory):
    base = tiny_llama()
    lowered = lower_adapter(adapter_files(directory), ModelWeights(base))
    ours = canonical_logits(base, lowered, TOKENS)
    theirs = PeftModel.from_pretrained(base, directory).eval()(input_ids=TOKENS).logits
    assert (ours - theirs).abs().max() <= 2e-5
    return lowered


def test_an_adalora_of_which_linears_lost_every_rank_gives_pefts_logits(tmp_path):
    none = [False] * 4
    save_cut(tmp_path, {"layers.0.mlp.down_proj": none, "layers.1.self_attn": none, "up_proj": [True] * 4})
    lowered = assert_equal_to_peft(tmp_path)
    summary = inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))
    assert lowered.rank == summary.rank == 4
    assert lowered.linears.keys().isdisjoint({LinearId(0, "down_proj"), LinearId(1, "q_proj"), LinearId(1, "o_proj")})
    assert len(lowered.linears) == 14 - 5


def test_an_adalora_that_lost_every_rank_everywhere_is_refused(tmp_path):
    save_cut(tmp_path, {"": [False] * 4})
    with pytest.raises(InvalidAdapter, match="rank_pattern: leaves no rank"):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))


def test_no_ranks_are_refused_of_an_adalora_that_was_not_cut(tmp_path):
    save_cut(tmp_path, {"layers.0.mlp.down_proj": [False] * 4})
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rank_pattern": None}))
    with pytest.raises(InvalidAdapter, match=r"lora_A: .*init_r|lora_A: expected a shape of positive sizes"):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))


@pytest.mark.parametrize(("vectors", "top"), [(30, 1), (30, 3), (300, 2)])
def test_a_vblora_of_any_number_of_likeliest_vectors_gives_pefts_logits(vectors, top, tmp_path):
    config = of(VBLoRAConfig, r=4, num_vectors=vectors, vector_length=16, topk=top, save_only_topk_weights=True)
    save_peft(tmp_path, tiny_llama(), config)
    assert_equal_to_peft(tmp_path)


@pytest.mark.parametrize(
    ("value", "problem"), [(30, "expected integers from 0 to 29, found 30"), (None, "expected each vector once")]
)
def test_vectors_that_are_not_in_the_bank_or_there_twice_are_refused(value, problem, tmp_path):
    config = of(VBLoRAConfig, r=4, num_vectors=30, vector_length=16, topk=3, save_only_topk_weights=True)
    save_peft(tmp_path, tiny_llama(), config)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.vblora_logits_A_topk_indices"
    tensors[name][0, 0, 0] = tensors[name][0, 0, 1] if value is None else value
    save_file(tensors, path)
    with pytest.raises(InvalidAdapter, match=problem):
        lower_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama()))
