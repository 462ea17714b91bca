"""LORA on the embedding and the output head, beyond what equals PEFT's forward: the weights it saves, and refusals."""

import json

import pytest
import torch
from canonical import canonical_logits
from peft import PeftModel, VeloraConfig
from peft_adapters import adapter_files, save_peft
from peft_kinds import lora
from safetensors.torch import load_file, save_file
from tiny_models import ModelWeights, base_shape, tiny_llama

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter
from hotshoe.registry.recipes.dense_update import unmergeable_parts

TOKENS = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(5))
BOTH = ["embed_tokens", "lm_head", "q_proj"]
WEIGHTS = {
    "embed_tokens": "base_model.model.model.embed_tokens.base_layer.weight",
    "lm_head": "base_model.model.lm_head.base_layer.weight",
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head", "v_proj"], BOTH])
def test_a_saved_weight_that_is_not_the_base_s_is_served_as_peft_loads_it(targets, tied, tmp_path):
    save_peft(tmp_path, tiny_llama(tied=tied), lora(target_modules=targets))
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(2)
    for index, name in enumerate(name for target, name in WEIGHTS.items() if target in targets):
        tensors[name][index * 7 : 20] += torch.randn(20 - index * 7, 64, generator=generator)
    save_file(tensors, path)
    base = tiny_llama(tied=tied)
    lowered = lower_adapter(adapter_files(tmp_path), ModelWeights(base))
    ours = canonical_logits(base, lowered, TOKENS)
    with torch.no_grad():
        plain = base(TOKENS).logits
        theirs = PeftModel.from_pretrained(base, tmp_path).eval()(input_ids=TOKENS).logits
    assert (ours - theirs).abs().max() <= 2e-5
    assert (ours - plain).abs().max() > 0.1
    for rows in (lowered.embedding_rows, lowered.head_rows):
        assert rows is None or 0 < len(rows.token_ids) <= 20


@pytest.mark.parametrize("tied", [False, True])
def test_factors_without_the_weight_are_enough(tied, tmp_path):
    save_peft(tmp_path, tiny_llama(tied=tied), lora(target_modules=BOTH))
    path = tmp_path / "adapter_model.safetensors"
    weights = ModelWeights(tiny_llama(tied=tied))
    whole = lower_adapter(adapter_files(tmp_path), weights)
    save_file({name: tensor for name, tensor in load_file(path).items() if "base_layer" not in name}, path)
    bare = lower_adapter(adapter_files(tmp_path), weights)
    for lowered in (whole, bare):
        assert lowered.embedding_rows is None and lowered.head_rows is None
        assert unmergeable_parts(lowered) == "embedding_update, head_update"  # or a merge would leave them out
        assert lowered.rank == 4 and lowered.embedding_update.rank == lowered.head_update.rank == 4
    assert torch.equal(whole.head_update.rows, bare.head_update.rows)


def test_an_adapter_of_the_head_alone_has_the_head_s_rank(tmp_path):
    save_peft(tmp_path, tiny_llama(), lora(target_modules=["lm_head"], r=6))
    summary = inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))
    assert (summary.rank, summary.target_modules) == (6, ())


@pytest.mark.parametrize(
    ("change", "error", "problem"),
    [
        ({"use_dora": True}, InvalidAdapter, "target_modules: selects lm_head, which no variant"),
        ({"lora_bias": True}, InvalidAdapter, "target_modules: selects lm_head, which no variant"),
        ({"init_lora_weights": "pissa"}, InvalidAdapter, "target_modules: selects lm_head, which no variant"),
        ({"alora_invocation_tokens": [1]}, InvalidAdapter, "target_modules: selects lm_head, which no variant"),
        ({"velora_config": vars(VeloraConfig())}, InvalidAdapter, "target_modules: selects lm_head, which no variant"),
        ({"r": 5}, InvalidAdapter, "found rank 4, expected 5"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, InvalidAdapter, "by its config it does not adapt"),
        ({"target_modules": ["q_proj"]}, InvalidAdapter, "by its config it does not adapt"),
        ({"exclude_modules": ["lm_head"]}, InvalidAdapter, "by its config it does not adapt"),
        ({"layers_to_transform": [0]}, InvalidAdapter, "by its config it does not adapt"),  # lm_head is meant by name
        ({"target_modules": ["lm_heads"]}, IncompatibleAdapter, "selects no linear"),
    ],
)
def test_what_is_not_served_of_tokens_is_refused_by_name(change, error, problem, tmp_path):
    save_peft(tmp_path, tiny_llama(), lora(target_modules=BOTH))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(error, match=problem):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))


def test_tokens_trained_in_two_ways_are_refused(tmp_path):
    save_peft(tmp_path, tiny_llama(), lora(trainable_token_indices=[3, 5], modules_to_save=["norm"]))
    files, path = adapter_files(tmp_path), tmp_path / "adapter_config.json"
    base = tiny_llama()
    lowered = lower_adapter(files, ModelWeights(base))
    assert lowered.norms and lowered.embedding_rows.token_ids.tolist() == [3, 5]  # neither hides the other
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"target_modules": ["embed_tokens"]}))
    with pytest.raises(InvalidAdapter, match="trainable_token_indices: expected null where target_modules selects"):
        inspect_adapter(files, base_shape(base))
    weight = {"base_model.model.model.embed_tokens.weight": base.model.embed_tokens.weight.detach()}
    save_file(load_file(tmp_path / "adapter_model.safetensors") | weight, tmp_path / "adapter_model.safetensors")
    path.write_text(json.dumps(config | {"modules_to_save": ["norm", "embed_tokens"]}))
    with pytest.raises(InvalidAdapter, match=r"modules_to_save: expected no model\.embed_tokens"):
        inspect_adapter(files, base_shape(base))
