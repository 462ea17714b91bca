"""Adapters under which every greedy answer is one token, again and again, each kind in a way of its own.

What an answer consists of says so which adapter gave it. What the base makes of a prompt does not count: at the last
layer each adds what is larger by far than all that is there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from hub_adapters import WEIGHTS_FILE, write_bottleneck
from peft_adapters import direction_of, write_forced_token_lora, write_peft_prefix
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

STRENGTH = 1e5  # beside which a residual stream is nothing
_SHARP = 1e3  # of keys, so that some virtual token has all attention


def write_canary(directory: Path, model: PreTrainedModel, token: int, *, number: int) -> Path:
    """A canary of the `number`-th kind, round and round; LORA ones are of many ranks."""
    kinds: Sequence[Callable[[], Path]] = (
        lambda: write_forced_token_lora(directory, model, token, rank=1 + number % 16),
        lambda: _write_prefix(directory, model, token),
        lambda: _write_bottleneck(directory, model, token),
    )
    return kinds[number % len(kinds)]()


def _logit_rows(model: PreTrainedModel) -> Tensor:
    """[vocab, hidden], of which a residual stream's products, scaled, are the logits."""
    head, norm = model.get_output_embeddings().weight, model.model.norm.weight
    return (head * norm).detach().float()


def _write_prefix(directory: Path, model: PreTrainedModel, token: int) -> Path:
    """Keys that point both ways along each axis: whatever a query is, one of them fits it best. All have one value."""
    config = model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    output = model.model.layers[-1].self_attn.o_proj.weight.detach().float()
    groups = config.num_attention_heads // heads
    shared = output.view(-1, heads, groups, width).sum(dim=2).reshape(-1, heads * width)  # a value serves its group
    value = direction_of(_logit_rows(model) @ shared, token)
    axes = _SHARP * torch.eye(width)
    keys = torch.cat([axes, -axes]).repeat(1, heads)  # [tokens, heads * width]
    pages = torch.zeros(len(keys), config.num_hidden_layers, 2, heads * width)
    pages[:, -1, 0], pages[:, -1, 1] = keys, STRENGTH * value
    return write_peft_prefix(directory, model, pages.flatten(1))


def _write_bottleneck(directory: Path, model: PreTrainedModel, token: int) -> Path:
    """Networks that give nothing, but for the bias of the last."""
    write_bottleneck(directory, model)
    tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(directory / WEIGHTS_FILE).items()}
    last = model.config.num_hidden_layers - 1
    bias = f"model.layers.{last}.output_adapters.adapters.random.adapter_up.bias"
    tensors[bias] = STRENGTH * direction_of(_logit_rows(model), token)
    save_file(tensors, directory / WEIGHTS_FILE)
    return directory
