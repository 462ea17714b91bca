"""Tiny random models as Hugging Face directories, with a real byte-level tokenizer: what the server loads as a base."""

import json
from pathlib import Path
from typing import Any

import torch
from tiny_models import _randomized
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<pad>")
VOCAB_SIZE = 300  # 256 bytes, the special tokens, and rows that no token uses
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

GEMMA = {"hidden_size": 96, "head_dim": 32, "tie_word_embeddings": True}
WINDOWS = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 20}


def tiny_model(family: str = "llama", *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """A random float32 transformers model of a family ("llama", "mistral", "qwen2", "qwen3", "gemma2", …).

    Hidden 64, intermediate 128, 2 layers, 4 heads over 2 key-value heads, vocabulary 300, 512 positions; any field of
    the family's config may be given instead. Gemmas have a hidden size whose root is no whole number, windows of 9
    positions where they have any, and scores that their caps are felt by.
    """
    fields = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": 256,
        "pad_token_id": 259,
        "tie_word_embeddings": False,
    }
    if family == "qwen3":
        fields["head_dim"] = 32
    if family.startswith("gemma"):
        fields |= GEMMA | ({} if family == "gemma" else WINDOWS)
    if family == "gemma2":
        fields |= {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0}
    built = AutoConfig.for_model(family, **{**fields, **config})
    return _randomized(AutoModelForCausalLM.from_config(built, dtype=torch.float32), seed)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, four special tokens, and a chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
    )


def write_tiny_model(directory: Path, family: str = "llama", *, seed: int = 0, **config: Any) -> PreTrainedModel:
    """Writes `tiny_model` and its tokenizer into a directory that `load_base` reads, and returns the model."""
    directory.mkdir(parents=True, exist_ok=True)
    model = tiny_model(family, seed=seed, **config)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [256, 258]}))
    return model
