"""The canonical form of an adapter: what the server computes, whatever PEFT called it.

Per decoder linear, with W the base weight and b its bias:

    y = output_scale ∘ h + swap(h) + copies(x) + b + bias_delta + B (A x),  h = W (rotation (input_scale ∘ x))

A and copies act on x itself, not on the scaled input. Per block of a layer, with o what it gives and r the residual:

    r + o + residual_gain · r + up φ(down t + down_bias) + up_bias,  t = o, r or r + o

Per adapter: keys and values that stand before every sequence, or
embeddings that do; rows of the embedding and of the output head, and norms' weights, in place of the base's; low-rank
updates of embedding and output head; and tokens that call it up, before which a prompt's rows are the base's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from hotshoe.registry.formats.base import BlockId, LinearId, NormId
from hotshoe.registry.formats.stored_matrix import StoredMatrix, wide

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class OutputSwap:
    """Adds to each output the product of another: swap(h)[i] = gains[i] · h[partners[i]]."""

    partners: "Tensor"  # [out_features] int64
    gains: "Tensor"  # [out_features] float32


@dataclass(frozen=True, slots=True)
class ScaledCopies:
    """W several times, its inputs and outputs scaled: copies(x) = Σ outputs[i] ∘ (W (inputs[i] ∘ x))."""

    outputs: "Tensor"  # [copies, out_features] float32
    inputs: "Tensor"  # [copies, in_features] float32


@dataclass(frozen=True, slots=True)
class LoweredLinear:
    """One adapter's part in one linear. All tensors float32 on the CPU, contiguous; None is the identity.

    A and B may be left as their file has them, in 16 bits; whoever computes with them takes `factors`.
    """

    a: "Tensor | StoredMatrix | None" = None  # [rank, in_features]
    b: "Tensor | StoredMatrix | None" = None  # [out_features, rank], every scale folded in
    input_scale: "Tensor | None" = None  # [in_features]
    output_scale: "Tensor | None" = None  # [out_features]
    bias_delta: "Tensor | None" = None  # [out_features], the effective bias less the base's
    input_rotation: "Tensor | None" = None  # [blocks, size, size]: each block of x, a row, times its matrix
    output_swap: OutputSwap | None = None
    copies: ScaledCopies | None = None
    scale: float | None = None  # what of b the config gave, as LORA's alpha / r; None if its kind has no such thing

    @property
    def rank(self) -> int:
        return 0 if self.a is None else self.a.shape[0]

    @property
    def factors(self) -> "tuple[Tensor, Tensor] | None":
        """A and B in float32, copies where they are stored otherwise; None unless it has both."""
        return None if self.a is None or self.b is None else (wide(self.a), wide(self.b))

    def tensors(self) -> "Iterator[Tensor]":
        """Those that are set, but for those of `stored`."""
        for tensor in (self.a, self.b, self.input_scale, self.output_scale, self.bias_delta, self.input_rotation):
            if tensor is not None and not isinstance(tensor, StoredMatrix):
                yield tensor
        if self.output_swap is not None:
            yield self.output_swap.gains
        if self.copies is not None:
            yield from (self.copies.outputs, self.copies.inputs)

    def stored(self) -> Iterator[StoredMatrix]:
        """Those of A and B that are as their file has them."""
        yield from (matrix for matrix in (self.a, self.b) if isinstance(matrix, StoredMatrix))


@dataclass(frozen=True, slots=True)
class KvPrefix:
    """Learned keys and values at positions 0 … length−1; stored as cached, so no rotation is applied."""

    keys: "Tensor"  # [num_layers, length, num_kv_heads, head_dim] float32
    values: "Tensor"  # the same

    @property
    def length(self) -> int:
        return self.keys.shape[1]


@dataclass(frozen=True, slots=True)
class GatedPrompt:
    """Keys and values that every query of a layer sees beside the others, in a softmax of their own, times a gate.

    What comes of it is added to what attention gives. No rotation is applied to the keys.
    """

    keys: "Tensor"  # [length, num_kv_heads, head_dim] float32
    values: "Tensor"  # the same
    gate: "Tensor"  # [1] float32


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A narrow network beside a block of a layer, whose output is added to the block's. All tensors float32."""

    taps: Literal["output", "residual", "sum"]  # what it reads: the block's output, the residual, or both together
    down: "Tensor"  # [width, hidden_size]
    down_bias: "Tensor | None"  # [width]
    activation: str  # one of ACTIVATIONS
    up: "Tensor"  # [hidden_size, width], every scale folded in
    up_bias: "Tensor | None"  # [hidden_size], the same
    residual_gain: float = 0.0  # how many times more the residual is added than the model adds it

    def tensors(self) -> "Iterator[Tensor]":
        """Those that are set."""
        for tensor in (self.down, self.down_bias, self.up, self.up_bias):
            if tensor is not None:
                yield tensor

    def to(self, device: "torch.device") -> "Bottleneck":
        return replace(
            self,
            down=self.down.to(device),
            down_bias=None if self.down_bias is None else self.down_bias.to(device),
            up=self.up.to(device),
            up_bias=None if self.up_bias is None else self.up_bias.to(device),
        )


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Rows of the embedding or of the output head, in place of the base's."""

    token_ids: "Tensor"  # [n] int64, ascending
    rows: "Tensor"  # [n, hidden_size] float32
    base: "Tensor"  # the same, what they replace: an adapter's weight goes from these to those


@dataclass(frozen=True, slots=True)
class TokenFactors:
    """What the rows of the embedding or of the output head gain: that of token v, rows[v] · directions."""

    rows: "Tensor"  # [vocab_size, rank] float32
    directions: "Tensor"  # [rank, hidden_size] float32, every scale folded in

    @property
    def rank(self) -> int:
        return self.rows.shape[1]

    def tensors(self) -> "Iterator[Tensor]":
        yield from (self.rows, self.directions)

    def to(self, device: "torch.device") -> "TokenFactors":
        return TokenFactors(self.rows.to(device), self.directions.to(device))


@dataclass(frozen=True, slots=True)
class Approximation:
    """What updates of full rank kept of themselves when they were cut to a rank."""

    rank: int  # that the publisher asked for
    energy: float  # share of ‖Δ‖², all linears together
    least_energy: float  # that of the linear which kept least
    least_linear: str  # its name, as LinearId has it


@dataclass(frozen=True, slots=True)
class LoweredAdapter:
    """An adapter in canonical form, ready to be placed on a device."""

    kind: str  # PEFT's peft_type, or a kind of AdapterHub's
    linears: "Mapping[LinearId, LoweredLinear]" = field(default_factory=dict)
    kv_prefix: KvPrefix | None = None
    prompt_embeddings: "Tensor | None" = None  # [length, hidden_size] float32, before every prompt
    embedding_rows: TokenRows | None = None
    head_rows: TokenRows | None = None
    # Added to the rows that there are then; of a tied base too, either is of the one or the other alone.
    embedding_update: TokenFactors | None = None
    head_update: TokenFactors | None = None
    norms: "Mapping[NormId, Tensor]" = field(default_factory=dict)  # [size] float32, its weights less the base's
    gated_prompts: Mapping[int, GatedPrompt] = field(default_factory=dict)  # by layer
    bottlenecks: Mapping[BlockId, Bottleneck] = field(default_factory=dict)
    # Its linears act from where these token ids stand in the prompt for the last time; not at all where they do not.
    # None: everywhere.
    invocation: tuple[int, ...] | None = None
    approximation: Approximation | None = None  # None: it is what was trained, exactly

    @property
    def rank(self) -> int:
        """The largest rank of any low-rank part; 0 if it has none."""
        parts = (*self.linears.values(), self.embedding_update, self.head_update)
        return max((part.rank for part in parts if part is not None), default=0)

    @property
    def virtual_tokens(self) -> int:
        """How many positions it puts before the prompt."""
        prefix = self.kv_prefix.length if self.kv_prefix else 0
        return prefix + (0 if self.prompt_embeddings is None else self.prompt_embeddings.shape[0])

    def tensors(self) -> "Iterator[Tensor]":
        """Every tensor that it holds, but for those of `stored`."""
        for linear in self.linears.values():
            yield from linear.tensors()
        if self.kv_prefix:
            yield self.kv_prefix.keys
            yield self.kv_prefix.values
        if self.prompt_embeddings is not None:
            yield self.prompt_embeddings
        for replaced in (self.embedding_rows, self.head_rows):
            if replaced:
                yield replaced.rows
                yield replaced.base
        for update in (self.embedding_update, self.head_update):
            if update is not None:
                yield from update.tensors()
        yield from self.norms.values()
        for prompt in self.gated_prompts.values():
            yield from (prompt.keys, prompt.values, prompt.gate)
        for bottleneck in self.bottlenecks.values():
            yield from bottleneck.tensors()

    def stored(self) -> Iterator[StoredMatrix]:
        """Every matrix that is as its file has it."""
        for linear in self.linears.values():
            yield from linear.stored()

    @property
    def size_bytes(self) -> int:
        stored = sum(matrix.values.nbytes for matrix in self.stored())
        return stored + sum(tensor.nbytes for tensor in self.tensors())
