"""A GGUF file as a checkpoint: its config in Hugging Face's spelling, its tensors dequantized, names and all.

llama.cpp keeps the query and key rows of its "llama" architecture with rotary pairs side by side; here they are put
back into halves.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.config_fields import integer
from hotshoe.server.model.spec import RopeSpec

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_FIELDS = {  # of the architecture → in config.json
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
    "vocab_size": "vocab_size",
}
_ROPE_FIELDS = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
_OTHER_FIELDS = {"rope.dimension_count", "attention.value_length", "rope.scaling.finetuned"}
_LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MODEL_TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_PHI3_TENSORS = {**_LAYER_TENSORS, "attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"}
_PHI3_FIELDS = {"attention.sliding_window", "rope.scaling.attn_factor"}
_LONG_SHORT = _LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_ROPE_FACTORS = "rope_freqs.weight"  # divisors of the rotary frequencies, as Llama 3 scales them


class GgufFile:
    """A GGUF file of a known architecture. Reads tensors from a memory map, one at a time."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        self.path = path
        try:
            reader = GGUFReader(path)
            self.fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
        except (OSError, ValueError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise UnsupportedModel(f"{path}: cannot be read as GGUF: {error}") from error
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._architecture = str(self.fields.get("general.architecture"))
        if self._architecture not in _ARCHITECTURES:
            known = ", ".join(sorted(_ARCHITECTURES))
            raise UnsupportedModel(f"GGUF architecture {self._architecture} is not served here; known are {known}")
        factors = _LONG_SHORT if self._is_phi3 else (_ROPE_FACTORS,)
        self._stored = {self._hugging_face_name(name): name for name in self._tensors if name not in factors}

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def _is_phi3(self) -> bool:
        return self._architecture == "phi3"

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._stored)

    @property
    def weight_files(self) -> tuple[Path, ...]:
        return (self.path,)

    @cached_property
    def config(self) -> dict[str, Any]:
        own = self._own_fields()
        config = {ours: own[theirs] for theirs, ours in _FIELDS.items() if theirs in own}
        config.setdefault("vocab_size", len(self.fields.get("tokenizer.ggml.tokens", ())))
        config["architectures"] = [_ARCHITECTURES[self._architecture]]
        config["model_type"] = self._architecture
        config["tie_word_embeddings"] = "output.weight" not in self._tensors
        config["attention_bias"] = "blk.0.attn_q.bias" in self._tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in self._tensors
        if "tokenizer.ggml.eos_token_id" in self.fields:
            config["eos_token_id"] = self.fields["tokenizer.ggml.eos_token_id"]
        each = integer(config, "hidden_size") // integer(config, "num_attention_heads")
        head_dim = config.setdefault("head_dim", each)
        whole = ("attention.value_length",) if self._is_phi3 else ("attention.value_length", "rope.dimension_count")
        for name in whole:
            if own.get(name, head_dim) != head_dim:
                raise UnsupportedModel(f"{name}: expected the head's length, {head_dim}, not {own[name]}")
        if self._is_phi3:
            return config | self._phi3_config(own, integer(config, "head_dim"))
        if scaling := self._rope_scaling(own, head_dim, config):
            config["rope_scaling"] = scaling
        return config

    def _phi3_config(self, own: dict[str, Any], head_dim: int) -> dict[str, Any]:
        """What is Phi-3's alone: its window, of which 0 says that there is none, and how it turns."""
        if "attention.sliding_window" not in own:
            raise UnsupportedModel("attention.sliding_window: missing, as in old files; convert the model anew")
        turned = integer(own, "rope.dimension_count", head_dim)
        share = turned / head_dim
        found = {
            "sliding_window": own["attention.sliding_window"] or None,
            # of which transformers takes the whole number below
            "partial_rotary_factor": share if int(head_dim * share) == turned else math.nextafter(share, 1),
        }
        if "rope.scaling.original_context_length" in own:
            found["original_max_position_embeddings"] = own["rope.scaling.original_context_length"]
        factors = {name: self._tensors[name].data.tolist() for name in _LONG_SHORT if name in self._tensors}
        if len(factors) == 1:
            raise UnsupportedModel(f"{', '.join(_LONG_SHORT)}: expected both or neither")
        if factors:
            found["rope_scaling"] = {
                "rope_type": "longrope",
                "short_factor": factors[_SHORT],
                "long_factor": factors[_LONG],
                "attention_factor": own.get("rope.scaling.attn_factor"),
            }
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self._find(name).shape))

    def tensor(self, name: str) -> Tensor:
        """float32, in Hugging Face's row order."""
        from gguf import dequantize

        stored = self._find(name)
        try:
            tensor = torch.from_numpy(dequantize(stored.data, stored.tensor_type).copy())
        except NotImplementedError as error:
            raise UnsupportedModel(f"{stored.name}: {stored.tensor_type.name} cannot be dequantized") from error
        if self._architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = self.config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            tensor = _pairs_to_halves(tensor, heads)
        return tensor

    def linear(self, module: str) -> Tensor:
        return self.tensor(f"{module}.weight")

    def _find(self, name: str) -> Any:
        if name not in self._stored:
            raise UnsupportedModel(f"{name}: missing from {self.path.name}")
        return self._tensors[self._stored[name]]

    def _own_fields(self) -> dict[str, Any]:
        """The architecture's fields; those that could change the arithmetic unseen are refused."""
        prefix = f"{self._architecture}."
        own = {name.removeprefix(prefix): value for name, value in self.fields.items() if name.startswith(prefix)}
        known = _FIELDS.keys() | _ROPE_FIELDS.keys() | _OTHER_FIELDS | (_PHI3_FIELDS if self._is_phi3 else set())
        unknown = sorted(name for name, value in own.items() if name not in known and value)
        if unknown:
            raise UnsupportedModel(f"GGUF fields that are not served here: {', '.join(unknown)}")
        missing = sorted(
            name for name in ("block_count", "embedding_length", "attention.head_count") if name not in own
        )
        if missing:
            raise UnsupportedModel(f"GGUF fields missing: {', '.join(missing)}")
        return own

    def _rope_scaling(self, own: dict[str, Any], head_dim: int, config: dict[str, Any]) -> dict[str, Any]:
        scaling = {ours: own[theirs] for theirs, ours in _ROPE_FIELDS.items() if theirs in own}
        if _ROPE_FACTORS in self._tensors:
            if scaling.get("rope_type", "none") != "none":
                raise UnsupportedModel(f"rope.scaling.type: {scaling['rope_type']} beside {_ROPE_FACTORS}")
            divisors = torch.from_numpy(self._tensors[_ROPE_FACTORS].data.copy()).float()
            return _llama3_scaling(divisors, float(config.get("rope_theta", 10_000.0)), head_dim)
        return {} if scaling.get("rope_type", "none") == "none" else scaling

    def _hugging_face_name(self, name: str) -> str:
        if name in _MODEL_TENSORS:
            return _MODEL_TENSORS[name]
        parts = name.split(".")  # blk.<layer>.<part>.weight
        known = _PHI3_TENSORS if self._is_phi3 else _LAYER_TENSORS
        if len(parts) == 4 and parts[0] == "blk" and parts[2] in known:
            return f"model.layers.{parts[1]}.{known[parts[2]]}.{parts[3]}"
        raise UnsupportedModel(f"{name}: a tensor that {self._architecture} does not have here")


def _pairs_to_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows [heads · head_dim, …] from (pair, half) order to (half, pair) order within each head."""
    return rows.view(heads, rows.shape[0] // heads // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def _llama3_scaling(divisors: Tensor, theta: float, head_dim: int) -> dict[str, Any]:
    """The llama3 rope parameters that give those divisors of the plain frequencies."""
    plain = RopeSpec(theta=theta).inverse_frequencies(head_dim)
    factor = round(float(divisors.max()), 4)
    spec = RopeSpec(theta=theta, type="llama3", factor=factor, original_max_positions=8192)
    if divisors.shape != plain.shape or not torch.allclose(plain / divisors, spec.inverse_frequencies(head_dim)):
        raise UnsupportedModel(f"{_ROPE_FACTORS}: not the divisors of Llama 3's rope scaling")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": spec.low_freq_factor,
        "high_freq_factor": spec.high_freq_factor,
        "original_max_position_embeddings": spec.original_max_positions,
    }
