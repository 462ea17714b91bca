"""PREFIX_TUNING: learned keys and values of virtual tokens that stand before every sequence, in every layer.

CARTRIDGE is the same at inference: its keys and values were distilled from a text and not made by a projection.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import KvPrefix, LoweredAdapter
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NULL, Config, Rule, either, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {
    # PEFT saves what the projection gives, and loads it without one.
    "encoder_hidden_size": either(COUNT, NULL),
    "prefix_projection": FLAG,
    "init_weights": one_of(None, "zero"),
    "num_transformer_submodules": one_of(1, None),
}
_CARTRIDGE_REST: Mapping[str, Rule[object]] = {
    "num_frozen_tokens": INTEGER,  # of training
    "num_transformer_submodules": one_of(1, None),
}


@dataclass(frozen=True, slots=True)
class PrefixTuningPlan:
    """One tensor: a row for each virtual token, of its key and value in each layer by turns."""

    kind: str
    embeddings: TensorEntry  # [virtual_tokens, num_layers * 2 * num_kv_heads * head_dim]
    base: BaseShape
    rank: int = 0
    linears: tuple[LinearId, ...] = ()

    @property
    def virtual_tokens(self) -> int:
        return self.embeddings.shape[0]

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        import torch

        shape = self.base
        by_token = read(self.embeddings).numpy().reshape(-1, shape.num_layers, 2, shape.num_kv_heads, shape.head_dim)
        by_layer = np.ascontiguousarray(by_token.transpose(2, 1, 0, 3, 4))  # by NumPy: torch would use its thread pool
        keys, values = torch.from_numpy(by_layer).unbind()
        return LoweredAdapter(self.kind, kv_prefix=KvPrefix(keys, values))


def _plan(
    kind: str, rest: Mapping[str, Rule[object]], config: Config, tensors: Tensors, base: BaseShape
) -> PrefixTuningPlan:
    width = base.num_kv_heads * base.head_dim
    embeddings = take_prompt(config, tensors, base, width=2 * base.num_layers * width)
    require_base_size(config, "num_layers", base.num_layers, base)
    require_base_size(config, "num_attention_heads", base.num_kv_heads, base)
    require_base_size(config, "token_dim", width, base)
    config.close(kind, rest)
    return PrefixTuningPlan(kind, embeddings, base)


def take_prompt(config: Config, tensors: Tensors, base: BaseShape, *, width: int) -> TensorEntry:
    """Takes num_virtual_tokens and prompt_embeddings, and checks one by the other and both by the base."""
    config.require("task_type", one_of("CAUSAL_LM"))  # PEFT puts a prompt before nothing else
    count = config.require("num_virtual_tokens", COUNT)
    if count >= base.max_sequence_length:
        raise IncompatibleAdapter(
            "num_virtual_tokens", f"expected fewer than the {base.max_sequence_length} positions of {base.name}"
        )
    embeddings = tensors.take("prompt_embeddings", reason="it is what a prompt-learning adapter consists of")
    require_shape(embeddings, (None, width), of=base.name)
    if embeddings.shape[0] != count:
        raise InvalidAdapter(
            embeddings.name, f"found {embeddings.shape[0]} rows, expected {count} by num_virtual_tokens"
        )
    return embeddings


def require_base_size(config: Config, field: str, expected: int, base: BaseShape) -> None:
    """Takes a field that repeats a size of the base; IncompatibleAdapter if it is of another."""
    found = config.require(field, COUNT)
    if found != expected:
        raise IncompatibleAdapter(field, f"found {found}, expected {expected} for {base.name}")


plan_prefix_tuning = partial(_plan, "PREFIX_TUNING", _REST)  # see `Format`
plan_cartridge = partial(_plan, "CARTRIDGE", _CARTRIDGE_REST)
