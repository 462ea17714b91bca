"""What an adapter is held against: the shapes of a base model, and its weights where a lowering needs them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class LinearId(NamedTuple):  # as tables are looked up by it so often
    """One decoder linear: its layer and its Hugging Face name, e.g. (3, "q_proj")."""

    layer: int
    target: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.target}"


@dataclass(frozen=True, slots=True)
class LinearShape:
    """Shape of a decoder linear; `module` is its full name, e.g. "model.layers.3.self_attn.q_proj"."""

    module: str
    out_features: int
    in_features: int
    has_bias: bool


@dataclass(frozen=True, slots=True)
class NormId:
    """One norm: its layer, None if it is behind them all, and its Hugging Face name, e.g. (3, "input_layernorm")."""

    layer: int | None
    name: str

    def __str__(self) -> str:
        return self.name if self.layer is None else f"layers.{self.layer}.{self.name}"


@dataclass(frozen=True, slots=True)
class BlockId:
    """One of a layer's two blocks, whose output is added to the residual: (3, "self_attn") or (3, "mlp")."""

    layer: int
    name: str

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.name}"


@dataclass(frozen=True, slots=True)
class NormShape:
    """A norm's full name, e.g. "model.layers.3.input_layernorm", and how many weights it has."""

    module: str
    size: int


@dataclass(frozen=True, slots=True)
class BaseShape:
    """Everything about a base model that an adapter's files can be checked against without its weights."""

    name: str
    digest: str  # "sha256:<hex>" of the base
    model_type: str
    hidden_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_sequence_length: int
    linears: Mapping[LinearId, LinearShape]
    norms: Mapping[NormId, NormShape] = field(default_factory=dict)
    tied_head: bool = False  # the output head is the embedding


class BaseWeights(Protocol):
    """A loaded base model, as far as lowering reads it."""

    @property
    def shape(self) -> BaseShape: ...

    def bias(self, linear: LinearId) -> "Tensor | None":
        """[out_features] float32 on the CPU, or None if that linear has no bias."""

    def weight(self, linear: LinearId) -> "Tensor":
        """[out_features, in_features] float32 on the CPU: the dequantized weight that is served."""

    def norm(self, norm: NormId) -> "Tensor":
        """[size] float32 on the CPU."""

    def embedding(self) -> "Tensor":
        """[vocab_size, hidden_size] float32 on the CPU."""

    def head(self) -> "Tensor":
        """[vocab_size, hidden_size] float32 on the CPU: the output head, be it the embedding or not."""
