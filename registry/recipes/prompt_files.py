"""Prefixes and soft prompts as the files of PEFT's PREFIX_TUNING and PROMPT_TUNING adapters."""

import json
from typing import TYPE_CHECKING

from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lowered import KvPrefix
from hotshoe.registry.manifest import CONFIG_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from torch import Tensor


def prefix_files(prefix: KvPrefix, base: BaseShape, *, base_name: str) -> dict[str, bytes]:
    """adapter_config.json and adapter_model.safetensors of a prefix, float32; equal prefixes give equal bytes.

    `base_name` is what base_model_name_or_path says.
    """
    import torch

    by_layer = torch.stack((prefix.keys, prefix.values))  # [2, num_layers, length, num_kv_heads, head_dim]
    by_token = by_layer.permute(2, 1, 0, 3, 4).flatten(1)
    sizes = {"num_attention_heads": base.num_kv_heads, "token_dim": base.num_kv_heads * base.head_dim}
    return _files("PREFIX_TUNING", by_token, base, base_name, sizes)


def prompt_files(embeddings: "Tensor", base: BaseShape, *, base_name: str) -> dict[str, bytes]:
    """The same of a soft prompt, [length, hidden_size]."""
    return _files("PROMPT_TUNING", embeddings, base, base_name, {"token_dim": base.hidden_size})


def _files(kind: str, embeddings: "Tensor", base: BaseShape, base_name: str, sizes: dict[str, int]) -> dict[str, bytes]:
    from safetensors.numpy import save

    config = {
        "peft_type": kind,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "inference_mode": True,
        "num_virtual_tokens": embeddings.shape[0],
        "num_layers": base.num_layers,
        "num_transformer_submodules": 1,
        **sizes,
    }
    tensors = {"prompt_embeddings": embeddings.float().contiguous().numpy()}
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    return {WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}), CONFIG_FILE: text.encode()}
