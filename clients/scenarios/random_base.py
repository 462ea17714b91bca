"""Writes a base model of random NF4 weights: one of any size, without a download, whose words mean nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hotshoe.clients.scenarios.random_adapters import EVERY_LINEAR, DecoderShape, module_of

VOCABULARY = 256  # the bytes
_BLOCK = 64  # weights under one scale
# arXiv 2305.14314, appendix E
_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


def write_random_base(directory: Path, shape: DecoderShape) -> Path:
    """Makes `directory` a Hugging Face directory of that shape, unless it is there already, and returns it."""
    if not (directory / "config.json").exists():  # which is written last
        directory.mkdir(parents=True, exist_ok=True)
        _write_weights(directory / "model.safetensors", shape)
        _write_tokenizer(directory)
        (directory / "config.json").write_text(json.dumps(_config(shape)))
    return directory


def _config(shape: DecoderShape) -> Mapping[str, Any]:
    head_dim = min(128, shape.kv // 2)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // head_dim,
        "num_key_value_heads": shape.kv // head_dim,
        "head_dim": head_dim,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    }


def _write_weights(path: Path, shape: DecoderShape) -> None:
    """Codes and embeddings are random, scales and norms all alike."""
    import numpy as np  # what else is in this package needs neither
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors: dict[str, Any] = {"model.norm.weight": np.ones(shape.hidden, np.float16)}
    for name in ("model.embed_tokens", "lm_head"):
        drawn = random.standard_normal((VOCABULARY, shape.hidden), dtype=np.float32)
        tensors[f"{name}.weight"] = (0.02 * drawn).astype(np.float16)
    for layer in range(shape.layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = np.ones(shape.hidden, np.float16)
        for target in EVERY_LINEAR:
            inputs, outputs = shape.of(target)
            name = f"{module_of(layer, target)}.weight"
            state = {"quant_type": "nf4", "blocksize": _BLOCK, "dtype": "bfloat16", "shape": [outputs, inputs]}
            tensors[name] = random.integers(0, 256, (outputs * inputs // 2, 1), np.uint8)
            tensors[f"{name}.absmax"] = np.full(outputs * inputs // _BLOCK, 0.04, np.float32)
            tensors[f"{name}.quant_map"] = np.array(_NF4, np.float32)
            tensors[f"{name}.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    save_file(tensors, path)


def _write_tokenizer(directory: Path) -> None:
    """One token a byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: token for token, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
