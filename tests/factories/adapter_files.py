"""Adapter files as bytes, made from a base's shape alone and without PEFT: many of them, quickly."""

import json
from collections.abc import Sequence

import numpy as np
from safetensors.numpy import save

from hotshoe.registry.formats.base import BaseShape

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def lora_bytes(
    base: BaseShape, *, seed: int = 0, rank: int = 4, targets: Sequence[str] = ("q_proj", "v_proj", "down_proj")
) -> dict[str, bytes]:
    """A LORA adapter of some targets in every layer; alpha is 2 · rank."""
    normal = np.random.default_rng(seed).standard_normal
    tensors = {}
    for linear_id, linear in base.linears.items():
        if linear_id.target in targets:
            key = f"base_model.model.{linear.module}"
            tensors[f"{key}.lora_A.weight"] = 0.1 * normal((rank, linear.in_features), dtype=np.float32)
            tensors[f"{key}.lora_B.weight"] = 0.1 * normal((linear.out_features, rank), dtype=np.float32)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
    }
    return {WEIGHTS_FILE: save(tensors), CONFIG_FILE: json.dumps(config).encode()}


def poly_bytes(base: BaseShape, *, seed: int = 0, rank: int = 4, tasks: int = 3, skills: int = 2) -> dict[str, bytes]:
    """A POLY adapter of q_proj in every layer."""
    normal = np.random.default_rng(seed).standard_normal
    tensors = {}
    for linear_id, linear in base.linears.items():
        if linear_id.target == "q_proj":
            key = f"base_model.model.{linear.module}"
            tensors[f"{key}.poly_lora_A"] = normal((1, skills, linear.in_features, rank), dtype=np.float32)
            tensors[f"{key}.poly_lora_B"] = normal((1, skills, rank, linear.out_features), dtype=np.float32)
            tensors[f"{key}.poly_router.module_logits"] = normal((tasks, skills), dtype=np.float32)
    config = {
        "peft_type": "POLY",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "n_tasks": tasks,
        "n_skills": skills,
        "target_modules": ["q_proj"],
    }
    return {WEIGHTS_FILE: save(tensors), CONFIG_FILE: json.dumps(config).encode()}


def prefix_bytes(base: BaseShape, *, seed: int = 0, length: int = 4) -> dict[str, bytes]:
    """A PREFIX_TUNING adapter without a projection."""
    width = base.num_kv_heads * base.head_dim
    embeddings = np.random.default_rng(seed).standard_normal((length, 2 * base.num_layers * width), dtype=np.float32)
    config = {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "num_virtual_tokens": length,
        "num_layers": base.num_layers,
        "num_attention_heads": base.num_kv_heads,
        "token_dim": width,
    }
    return {WEIGHTS_FILE: save({"prompt_embeddings": embeddings}), CONFIG_FILE: json.dumps(config).encode()}
