"""Tiny random transformers models, and the base that each of them is to an adapter. For tests of any folder."""

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from hotshoe.registry.formats.base import BaseShape, LinearId, LinearShape, NormId, NormShape

Model = TypeVar("Model", bound=PreTrainedModel)
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED_TARGETS = ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")


def tiny_llama(*, seed: int = 0, layers: int = 2, bias: bool = False, tied: bool = False) -> LlamaForCausalLM:
    """Random weights of a size that adapters show on: hidden 64, 4 heads over 2 key-value heads, vocabulary 128."""
    config = LlamaConfig(
        **_sizes(layers), attention_bias=bias, mlp_bias=bias, tie_word_embeddings=tied, rope_theta=10_000.0
    )
    return _randomized(LlamaForCausalLM(config), seed)


def tiny_qwen2(*, seed: int = 0, layers: int = 2, tied: bool = False) -> Qwen2ForCausalLM:
    """As `tiny_llama`, with Qwen2's biases on q_proj, k_proj and v_proj."""
    return _randomized(Qwen2ForCausalLM(Qwen2Config(**_sizes(layers), tie_word_embeddings=tied)), seed)


def tiny_phi3(*, seed: int = 0, layers: int = 2, tied: bool = False) -> Phi3ForCausalLM:
    """As `tiny_llama`, with Phi-3's fused linears."""
    config = Phi3Config(**_sizes(layers), tie_word_embeddings=tied, pad_token_id=None, eos_token_id=None)
    return _randomized(Phi3ForCausalLM(config), seed)


def base_shape(model: PreTrainedModel, *, name: str = "tiny", digest: str = f"sha256:{'0' * 64}") -> BaseShape:
    """What an adapter of that model is checked against."""
    config = model.config
    return BaseShape(
        name=name,
        digest=digest,
        model_type=config.model_type,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        num_kv_heads=config.num_key_value_heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        vocab_size=config.vocab_size,
        max_sequence_length=config.max_position_embeddings,
        linears={
            linear: LinearShape(module, part.out_features, part.in_features, part.bias is not None)
            for linear, module, part in decoder_linears(model)
        },
        norms={norm: NormShape(module, part.weight.numel()) for norm, module, part in decoder_norms(model)},
        tied_head=config.tie_word_embeddings,
    )


def decoder_linears(model: PreTrainedModel) -> Iterator[tuple[LinearId, str, nn.Linear]]:
    """Each linear of each decoder layer, with its full name."""
    for module, part in model.named_modules():
        names = module.split(".")
        if isinstance(part, nn.Linear) and names[-1] in TARGETS + FUSED_TARGETS:
            yield LinearId(int(names[names.index("layers") + 1]), names[-1]), module, part


def decoder_norms(model: PreTrainedModel) -> Iterator[tuple[NormId, str, nn.Module]]:
    """Each norm, with its full name."""
    for module, part in model.named_modules():
        names = module.split(".")
        if names[-1].endswith("norm"):
            yield NormId(int(names[2]) if "layers" in names else None, names[-1]), module, part


class ModelWeights:
    """The `BaseWeights` of a transformers model, unquantized."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.shape = base_shape(model)
        self._linears = {linear: part for linear, _, part in decoder_linears(model)}
        self._norms = {norm: part.weight.detach().float() for norm, _, part in decoder_norms(model)}
        self._embedding = model.get_input_embeddings().weight.detach().float()
        self._head = model.get_output_embeddings().weight.detach().float()

    def bias(self, linear: LinearId) -> Tensor | None:
        bias = self._linears[linear].bias
        return None if bias is None else bias.detach().float()

    def weight(self, linear: LinearId) -> Tensor:
        return self._linears[linear].weight.detach().float()

    def norm(self, norm: NormId) -> Tensor:
        return self._norms[norm]

    def embedding(self) -> Tensor:
        return self._embedding

    def head(self) -> Tensor:
        return self._head


def _sizes(layers: int) -> dict[str, int]:
    return {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }


def _randomized(model: Model, seed: int) -> Model:
    generator = torch.Generator().manual_seed(seed)
    usual = 0 if model.config.model_type.startswith("gemma") else 1  # of a norm's weight; Gemma's norms add 1 to it
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                parameter.copy_(0.08 * noise)
            else:  # a bias, or a norm's weight
                parameter.copy_(0.1 * noise if name.endswith("bias") else usual + 0.1 * noise)
    return model.eval()
