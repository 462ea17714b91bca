"""Holds the sizes that a config claims against the tensors that the files have, before anything of them is made."""

import re

import torch

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.checkpoints import Checkpoint
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.spec import EMBEDDING, ModelSpec

_LAYER = re.compile(r"model\.layers\.(\d+)\.")


def read_spec(checkpoint: Checkpoint) -> ModelSpec:
    """The spec of a checkpoint, whose sizes are those of its tensors.

    Raises:
        UnsupportedModel: what `spec_from_config` refuses, or a size that the files do not have; names its field.
    """
    spec = spec_from_config(checkpoint.config)
    _check_layers(spec, checkpoint)
    for field, claimed, name, axis in _claims(spec):
        shape = checkpoint.shape(name)
        if len(shape) != 2 or shape[axis] != claimed:
            found = shape[axis] if len(shape) == 2 else f"of shape {list(shape)}"
            raise UnsupportedModel(f"{field}: the config says {claimed}, but {name} has {found}")
    _check_rope(spec)
    return spec


def _check_layers(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """Tensors of layers that the config does not have are told later, by name."""
    layers = len({found[1] for name in checkpoint.names if (found := _LAYER.match(name))})
    if spec.num_layers > layers:
        raise UnsupportedModel(f"num_hidden_layers: the config says {spec.num_layers}, but the files have {layers}")


def _check_rope(spec: ModelSpec) -> None:
    try:
        ropes = spec.distinct_ropes
        found = [rope.inverse_frequencies(spec.head_dim, far=far) for far in (False, True) for rope in ropes]
        finite = bool(torch.isfinite(torch.cat(found)).all())
    except (ArithmeticError, ValueError):  # a logarithm of what is as good as zero, or a bound beyond all numbers
        finite = False
    if not finite:
        raise UnsupportedModel("rope_parameters: they give frequencies that are not finite")


def _claims(spec: ModelSpec) -> tuple[tuple[str, int, str, int], ...]:
    """What the config says of a tensor's size: field, size, tensor, axis."""
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    query, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    keys = ("num_key_value_heads times head_dim", kv, f"{attention}.k_proj.weight", 0)
    if spec.fused:
        heads = "num_attention_heads and twice num_key_value_heads, times head_dim"
        keys = (heads, query + 2 * kv, f"{attention}.qkv_proj.weight", 0)
    return (
        ("vocab_size", spec.vocab_size, EMBEDDING, 0),
        ("hidden_size", spec.hidden_size, EMBEDDING, 1),
        ("num_attention_heads times head_dim", query, f"{attention}.o_proj.weight", 1),
        keys,
        ("intermediate_size", spec.intermediate_size, f"{mlp}.down_proj.weight", 1),
    )
