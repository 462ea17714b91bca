"""What the decoder needs to know of a model, whatever its family calls it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hotshoe.registry.formats.base import BaseShape, LinearId, LinearShape, NormId, NormShape

Gate = Literal["silu", "gelu_tanh"]
# Names of tensors, as in Hugging Face checkpoints.
BLOCKS = ("self_attn", "mlp")  # of a layer, each adding what it gives to the residual
BLOCK_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")  # behind blocks, where there are any
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding; the scaling fields are those of its type, None elsewhere."""

    theta: float
    type: str = "default"  # default | linear | llama3 | yarn | longrope
    share: float = 1.0  # of a head's dimensions, the first ones, that are turned; the others stay as they are
    factor: float = 1.0
    original_max_positions: int = 0
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn
    short_factors: tuple[float, ...] = ()  # longrope: they divide the frequencies, one each
    long_factors: tuple[float, ...] = ()  # longrope: those of far sequences
    attention_factor: float = 1.0  # multiplies cos and sin

    @property
    def far_from(self) -> int | None:
        """Sequences of more positions are far: all their positions have other frequencies. None: all have the same."""
        return self.original_max_positions if self.type == "longrope" else None

    def rotary_dim(self, head_dim: int) -> int:
        """How many of a head's dimensions are turned."""
        return int(head_dim * self.share)

    def inverse_frequencies(self, head_dim: int, *, far: bool = False) -> Tensor:
        """[rotary_dim / 2] float32: the angle of one position, by pair of dimensions; in a far sequence if so asked."""
        head_dim = self.rotary_dim(head_dim)
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        if self.type == "longrope":
            return 1.0 / (torch.tensor(self.long_factors if far else self.short_factors) * self.theta**exponents)
        frequencies = 1.0 / (self.theta**exponents)
        if self.type == "linear":
            return frequencies / self.factor
        if self.type == "llama3":
            return self._llama3(frequencies)
        if self.type == "yarn":
            return self._yarn(frequencies, head_dim)
        return frequencies

    def _llama3(self, frequencies: Tensor) -> Tensor:
        wavelength = 2 * math.pi / frequencies
        longest = self.original_max_positions / self.low_freq_factor
        shortest = self.original_max_positions / self.high_freq_factor
        smooth = (self.original_max_positions / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - smooth) * frequencies / self.factor + smooth * frequencies
        scaled = torch.where(wavelength > longest, frequencies / self.factor, frequencies)
        return torch.where((wavelength >= shortest) & (wavelength <= longest), blended, scaled)

    def _yarn(self, frequencies: Tensor, head_dim: int) -> Tensor:
        def dimension_of(rotations: float) -> float:
            turns = self.original_max_positions / (rotations * 2 * math.pi)
            return head_dim * math.log(turns) / (2 * math.log(self.theta))

        low, high = dimension_of(self.beta_fast), dimension_of(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        ramp = (torch.arange(head_dim // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
        extrapolated = 1 - ramp.clamp(0, 1)
        return frequencies / self.factor * (1 - extrapolated) + frequencies * extrapolated


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A decoder-only transformer with RMSNorm, rotary attention and a gated feed-forward."""

    architecture: str  # e.g. "LlamaForCausalLM"
    model_type: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_sequence_length: int
    norm_eps: float
    rope: RopeSpec
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    fused: bool  # q, k and v are one linear, and gate and up are
    qk_norm: bool  # RMSNorm over each query and key head, before the rotation
    tied_head: bool  # the output head is the embedding
    windows: tuple[int | None, ...]  # by layer: positions that a token sees, itself included; None is all
    gate: Gate = "silu"  # what the feed-forward's gate goes through
    norm_offset: float = 0.0  # added to norms' weights as they are stored
    block_norms: bool = False  # what a block gives is normed too, before it is added to the residual
    scaled_embedding: bool = False  # what is looked up is multiplied by the root of the hidden size
    query_scalar: float | None = None  # scores are divided by its root; None is head_dim
    attention_cap: float | None = None  # scores are at most so large: cap · tanh(score / cap)
    logit_cap: float | None = None  # and logits
    window_rope: RopeSpec | None = None  # of layers with a window, where it is not `rope`

    @property
    def attention_scale(self) -> float:
        """What a query's product with a key is multiplied by."""
        return float((self.query_scalar or self.head_dim) ** -0.5)

    @property
    def mlp_norm(self) -> str:
        """The norm before the feed-forward, by its Hugging Face name."""
        return "pre_feedforward_layernorm" if self.block_norms else "post_attention_layernorm"

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """By layer."""
        windowed = self.window_rope or self.rope
        return tuple(self.rope if window is None else windowed for window in self.windows)

    @property
    def distinct_ropes(self) -> tuple[RopeSpec, ...]:
        """Those that some layer has, in the order of the first such."""
        return tuple(dict.fromkeys(self.ropes))

    @property
    def rope_indices(self) -> tuple[int, ...]:
        """By layer, which of `distinct_ropes`."""
        return tuple(self.distinct_ropes.index(rope) for rope in self.ropes)

    def linears(self) -> Iterator[tuple[LinearId, LinearShape]]:
        """Every linear of every layer, in the order in which they run."""
        query, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        wide = self.intermediate_size
        qkv = {"qkv_proj": query + 2 * kv} if self.fused else {"q_proj": query, "k_proj": kv, "v_proj": kv}
        gate_up = {"gate_up_proj": 2 * wide} if self.fused else {"gate_proj": wide, "up_proj": wide}
        parts = (
            ("self_attn", qkv, self.hidden_size, self.qkv_bias),
            ("self_attn", {"o_proj": self.hidden_size}, query, self.o_bias),
            ("mlp", gate_up, self.hidden_size, self.mlp_bias),
            ("mlp", {"down_proj": self.hidden_size}, wide, self.mlp_bias),
        )
        for layer in range(self.num_layers):
            for block, targets, in_features, has_bias in parts:
                for target, out_features in targets.items():
                    module = f"model.layers.{layer}.{block}.{target}"
                    yield LinearId(layer, target), LinearShape(module, out_features, in_features, has_bias)

    def norms(self) -> Iterator[tuple[NormId, NormShape]]:
        """Every norm, in the order in which a step comes to it."""
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}"
            yield NormId(layer, "input_layernorm"), NormShape(f"{prefix}.input_layernorm", self.hidden_size)
            for name in ("q_norm", "k_norm") if self.qk_norm else ():
                yield NormId(layer, name), NormShape(f"{prefix}.self_attn.{name}", self.head_dim)
            behind = (BLOCK_NORMS[0], self.mlp_norm, BLOCK_NORMS[1]) if self.block_norms else (self.mlp_norm,)
            for name in behind:
                yield NormId(layer, name), NormShape(f"{prefix}.{name}", self.hidden_size)
        yield NormId(None, "norm"), NormShape("model.norm", self.hidden_size)

    def base_shape(self, *, name: str, digest: str) -> BaseShape:
        """What an adapter is checked against."""
        return BaseShape(
            name=name,
            digest=digest,
            model_type=self.model_type,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            vocab_size=self.vocab_size,
            max_sequence_length=self.max_sequence_length,
            linears=dict(self.linears()),
            norms=dict(self.norms()),
            tied_head=self.tied_head,
        )
