"""A base with an adapter in its weights answers as PEFT's own merge does, and is itself again when it is read anew."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from decoder_inputs import Chunk, decoder_input, paged_slots
from hub_adapters import write_bottleneck
from model_directories import write_tiny_model
from peft import PeftModel
from peft_adapters import adapter_files, write_ia3, write_lora, write_prefix, write_prompt
from torch import Tensor
from transformers import AutoModelForCausalLM

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.server.model.loader import LoadedBase, load_base

PROMPT = [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61]
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")


def load(source: Path, adapter: Path | None = None, *, backend: str = "reference") -> LoadedBase:
    merge = None if adapter is None else lambda weights: lower_adapter(adapter_files(adapter), weights)
    return load_base(str(source), cache=source.parent / "cache", backend=backend, merge=merge)


def logits_of(base: LoadedBase) -> Tensor:
    kv = base.decoder.new_kv_cache(64)
    chunk = Chunk(PROMPT, 0, paged_slots(len(PROMPT), first_page=1))
    return base.decoder.forward(decoder_input([chunk], all_logits=True), kv)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm()).item()


def peft_logits(source: Path, base: LoadedBase, adapter: Path, *, merged: bool = True) -> Tensor:
    """By PEFT's merge on the dequantized weights, its result rounded to bfloat16 as ours is; or by its forward."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
        for linear, shape in base.weights.shape.linears.items():
            model.get_submodule(shape.module).weight.copy_(base.weights.weight(linear))
        model = PeftModel.from_pretrained(model, adapter).eval()
        if merged:
            model = model.merge_and_unload()
            for shape in base.weights.shape.linears.values():
                weight = model.get_submodule(shape.module).weight
                weight.copy_(weight.bfloat16())
        logits: Tensor = model(torch.tensor([PROMPT])).logits[0]
    return logits


WRITERS: dict[str, Callable[..., Path]] = {
    "lora": lambda path, model: write_lora(path, model, targets=ALL, scale=0.03),
    "lora with biases of its own": lambda path, model: write_lora(path, model, lora_bias=True, scale=0.05),
    "ia3": lambda path, model: write_ia3(path, model, targets=("k_proj", "v_proj", "qkv_proj", "down_proj"), scale=0.2),
}


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("llama", "lora"),
        ("llama", "ia3"),
        ("qwen2", "lora"),
        ("qwen2", "ia3"),
        ("qwen2", "lora with biases of its own"),
        ("phi3", "lora"),
        ("phi3", "ia3"),
    ],
)
def test_logits_are_those_of_pefts_merge_on_the_dequantized_weights(family: str, kind: str, tmp_path: Path) -> None:
    source = tmp_path / "model"
    adapter = WRITERS[kind](tmp_path / "adapter", write_tiny_model(source, family))
    base = load(source)
    expected = peft_logits(source, base, adapter)
    assert relative_error(logits_of(base), expected) > 0.02
    merged = load(source, adapter)
    assert relative_error(logits_of(merged), expected) < 1e-3  # of a weight halfway between two bfloat16 numbers
    assert relative_error(logits_of(load(source, adapter, backend="cpu_dense")), expected) < 0.02
    assert merged.digest == base.digest and (merged.quantization, base.quantization) == ("none", "nf4")


@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_bias_is_merged_where_the_base_has_none(family: str, tmp_path: Path) -> None:
    """Which PEFT's merge refuses, so this is held against its forward."""
    source = tmp_path / "model"
    adapter = write_lora(
        tmp_path / "adapter", write_tiny_model(source, family), targets=ALL, lora_bias=True, scale=0.03
    )
    expected = peft_logits(source, load(source), adapter, merged=False)
    assert relative_error(logits_of(load(source)), expected) > 0.02
    assert relative_error(logits_of(load(source, adapter)), expected) < 0.005


def test_the_base_is_itself_again_bit_for_bit(tmp_path: Path) -> None:
    source = tmp_path / "model"
    adapter = write_lora(tmp_path / "adapter", write_tiny_model(source))
    before = logits_of(load(source))
    files = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()}
    assert not torch.equal(logits_of(load(source, adapter)), before)
    assert {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*") if path.is_file()} == files
    assert torch.equal(logits_of(load(source)), before)


def test_the_report_says_what_is_kept_and_what_nf4_would_have_kept(tmp_path: Path) -> None:
    source = tmp_path / "model"
    model = write_tiny_model(source)
    assert load(source).merge is None
    small = load(source, write_lora(tmp_path / "small", model, scale=0.01)).merge
    large = load(source, write_lora(tmp_path / "large", model, scale=0.1)).merge
    assert small is not None and large is not None and small.linears == 4
    assert small.kept.share == pytest.approx(1, abs=0.05) and small.kept.error < 0.5
    assert small.nf4_kept.share < 0.1 and small.nf4_kept.error > 0.9
    assert large.kept.error < small.kept.error and large.nf4_kept.share > 0.8


@pytest.mark.parametrize(
    ("write", "part"),
    [(write_prefix, "kv_prefix"), (write_prompt, "prompt_embeddings"), (write_bottleneck, "bottlenecks")],
    ids=["prefix", "prompt", "bottleneck"],
)
def test_what_is_no_change_of_a_weight_is_refused_by_name(
    write: Callable[..., Path], part: str, tmp_path: Path
) -> None:
    source = tmp_path / "model"
    adapter = write(tmp_path / "adapter", write_tiny_model(source))
    with pytest.raises(InvalidAdapter, match=f"{part}: a .* adapter's cannot be merged"):
        load(source, adapter)
