"""Whole weights of embedding and head in an adapter's file, and what is tied: as PEFT loads them, or refused."""

import itertools
from functools import partial

import pytest
import torch
from canonical import canonical_logits
from peft import PeftModel
from peft_adapters import adapter_files, save_peft, write_lora
from peft_kinds import ia3, lora
from safetensors.torch import load_file, save_file
from tiny_models import ModelWeights, base_shape, tiny_llama

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter

TOKENS = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(5))
BASES = {"untied": tiny_llama, "tied": partial(tiny_llama, tied=True)}
EMBEDDING, HEAD = "embed_tokens", "lm_head"
EITHER = [[EMBEDDING], [HEAD], [EMBEDDING, HEAD]]


def saved(**fields):
    return lambda names: lora(target_modules=["q_proj"], modules_to_save=list(names), **fields)


def targeted(**fields):
    return lambda names: lora(target_modules=["q_proj", *names], rank_pattern={HEAD: 4}, **fields)


def trained(**fields):
    return lambda names: lora(
        target_modules=["q_proj"], trainable_token_indices=dict.fromkeys(names, [5, 1, 90]), **fields
    )


CONFIGS = {
    "saved": saved(),
    "saved and tied": saved(ensure_weight_tying=True),
    "saved and targeted": lambda names: lora(target_modules=["q_proj", *names], modules_to_save=list(names)),
    "saved and tied by their full names": lambda names: lora(
        target_modules=["q_proj"], modules_to_save=["model.embed_tokens", "norm"], ensure_weight_tying=True
    ),
    "targeted and tied": targeted(ensure_weight_tying=True),
    "targeted and tied by a regular expression": lambda names: lora(
        target_modules=rf".*(q_proj|{'|'.join(names)})", ensure_weight_tying=True, use_rslora=True
    ),
    "trained": trained(),
    "trained and tied": trained(ensure_weight_tying=True),
}


def differ(directory, names, generator):
    """Changes whole weights of the file, so that copies are told apart."""
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in sorted(tensors):
        if name.endswith(names):
            tensors[name][20:60] += 0.3 * torch.randn(40, tensors[name].shape[1], generator=generator)
    save_file(tensors, path)


@torch.no_grad()
def logits(new_base, directory):
    base = new_base()
    lowered = lower_adapter(adapter_files(directory), ModelWeights(base))
    ours, plain = canonical_logits(base, lowered, TOKENS), base(TOKENS).logits
    theirs = PeftModel.from_pretrained(base, directory).eval()(input_ids=TOKENS).logits
    return ours, theirs, plain


@pytest.mark.parametrize("base, names, name", itertools.product(BASES, EITHER, CONFIGS))
def test_embeddings_and_heads_that_are_one_or_two_give_pefts_logits(base, names, name, tmp_path):
    save_peft(tmp_path, BASES[base](), CONFIGS[name](names))
    ours, theirs, plain = logits(BASES[base], tmp_path)
    assert (ours - theirs).abs().max() <= 2e-5
    assert (ours - plain).abs().max() > 0.1


@pytest.mark.parametrize("base, names", itertools.product(BASES, EITHER))
def test_of_two_copies_of_tied_factors_the_last_one_counts(base, names, tmp_path):
    save_peft(tmp_path, BASES[base](), targeted(ensure_weight_tying=True)(names))
    tied = ("lm_head.lora_A.weight", "lm_head.lora_B.weight", "base_layer.weight")
    generator = torch.Generator().manual_seed(3)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    for name in sorted(tensors):
        if name.endswith(tied):
            tensors[name] += 0.1 * torch.randn(tensors[name].shape, generator=generator)
    save_file(tensors, path)
    ours, theirs, _ = logits(BASES[base], tmp_path)
    assert (ours - theirs).abs().max() <= 2e-5


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "config",
    [
        lora(target_modules=["q_proj"]),
        ia3(),
        *(saved()(names) for names in EITHER),
        *(saved(ensure_weight_tying=True)(names) for names in EITHER),
        lora(target_modules=["q_proj"], modules_to_save=["norm"], bias="all"),
    ],
    ids=lambda config: (
        f"{config.peft_type.value} {config.modules_to_save} {getattr(config, 'ensure_weight_tying', '')}"
    ),
)
def test_the_base_s_weights_that_save_embedding_layers_wrote_are_served_as_peft_loads_them(base, config, tmp_path):
    save_peft(tmp_path, BASES[base](), config).save_pretrained(tmp_path, save_embedding_layers=True)
    generator = torch.Generator().manual_seed(2)
    for _ in range(2):  # as they were written, and changed
        ours, theirs, _ = logits(BASES[base], tmp_path)
        assert (ours - theirs).abs().max() <= 2e-5
        differ(tmp_path, ("embed_tokens.weight", "lm_head.weight", "original_module.weight"), generator)


def test_the_base_s_own_weights_replace_no_row(tmp_path):
    model = save_peft(tmp_path, tiny_llama(), lora(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    lowered = lower_adapter(adapter_files(tmp_path), ModelWeights(tiny_llama()))
    assert lowered.embedding_rows is None and lowered.head_rows is None


def test_weights_of_a_vocabulary_that_was_enlarged_are_refused_with_both_sizes(tmp_path):
    directory = write_lora(tmp_path, tiny_llama())
    path = directory / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.embed_tokens.weight": torch.ones(130, 64)}, path)
    with pytest.raises(IncompatibleAdapter, match=r"found shape \[130, 64\], expected \[128, 64\]"):
        inspect_adapter(adapter_files(directory), base_shape(tiny_llama()))


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_an_activated_lora_replaces_no_weight_for_good(name, tmp_path):
    prefix = "base_model.model.model." if name == "embed_tokens" else "base_model.model."
    directory = write_lora(tmp_path, tiny_llama(), alora_invocation_tokens=[3])
    path = directory / "adapter_model.safetensors"
    save_file(load_file(path) | {f"{prefix}{name}.weight": torch.ones(128, 64)}, path)
    with pytest.raises(InvalidAdapter, match=rf"{name}\.weight: expected none beside alora_invocation_tokens"):
        inspect_adapter(adapter_files(directory), base_shape(tiny_llama()))


def test_tied_token_ids_that_differ_are_refused(tmp_path):
    tokens = {"embed_tokens": [1, 5], "lm_head": [1, 7]}
    directory = write_lora(tmp_path, tiny_llama(), trainable_token_indices=tokens, ensure_weight_tying=True)
    with pytest.raises(InvalidAdapter, match="trainable_token_indices: expected the same token ids twice"):
        inspect_adapter(adapter_files(directory), base_shape(tiny_llama(tied=True)))
