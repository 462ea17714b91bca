"""What the benchmarks publish: LORA adapters of q_proj alone, in as many layers as make their size."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotshoe.registry.digest import digest_of
from hotshoe.registry.formats.base import BaseShape, LinearId, LinearShape


def bench_base(layers: int, hidden_size: int) -> BaseShape:
    """A base of so many layers, each q_proj alone."""
    linears = {
        LinearId(layer, "q_proj"): LinearShape(_module(layer), hidden_size, hidden_size, False)
        for layer in range(layers)
    }
    return BaseShape(
        name="bench",
        digest=digest_of(b"bench"),
        model_type="llama",
        hidden_size=hidden_size,
        num_layers=layers,
        num_kv_heads=1,
        head_dim=hidden_size,
        vocab_size=32,
        max_sequence_length=64,
        linears=linears,
    )


def lora_tensors(draw: Callable[..., Any], layers: int, rank: int, hidden_size: int) -> dict[str, NDArray[np.float32]]:
    """An adapter's weights, drawn by a generator's method that takes a shape and a dtype."""
    tensors = {}
    for layer in range(layers):
        key = f"base_model.model.{_module(layer)}"
        tensors[f"{key}.lora_A.weight"] = draw((rank, hidden_size), dtype=np.float32)
        tensors[f"{key}.lora_B.weight"] = draw((hidden_size, rank), dtype=np.float32)
    return tensors


def lora_config(rank: int) -> bytes:
    """Its adapter_config.json."""
    config: Mapping[str, object] = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "target_modules": ["q_proj"],
        "bias": "none",
    }
    return json.dumps(config).encode()


def _module(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj"
