"""TINYLORA: y = W x + b + B R A x, where A and B are W's own singular vectors as training found them, in the file, and
R = Σ vᵢ Pᵢ mixes fixed random matrices by a vector v that a group of linears has in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import (
    COUNT,
    FLAG,
    INTEGER,
    NUMBER,
    SHARE,
    TEXT,
    Config,
    Rule,
    either,
    one_of,
    require_saved,
)
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_v_bound": NUMBER,
    "init_weights": either(FLAG, TEXT),
    "projection_seed": INTEGER,  # P is in the file
    "tinylora_dropout": SHARE,
}


@dataclass(frozen=True, slots=True)
class _Part:
    a: TensorEntry  # [rank, in_features]
    b: TensorEntry  # [out_features, rank]
    p: TensorEntry  # [u, rank, rank]
    group: int  # whose v it takes


@dataclass(frozen=True, slots=True)
class TinyLoraPlan:
    """A part for each linear, and the vectors that they share."""

    parts: Mapping[LinearId, _Part]
    vectors: Mapping[int, TensorEntry]  # [u], by group
    virtual_tokens: int = 0

    @property
    def rank(self) -> int:
        return max(part.a.shape[0] for part in self.parts.values())

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.parts)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        import torch

        vectors = {group: read(entry) for group, entry in self.vectors.items()}
        linears = {}
        for linear, part in self.parts.items():
            mixed = torch.einsum("i,ijk->jk", vectors[part.group], read(part.p))
            linears[linear] = LoweredLinear(a=read(part.a), b=read(part.b) @ mixed)
        return LoweredAdapter("TINYLORA", linears)


def plan_tinylora(config: Config, tensors: Tensors, base: BaseShape) -> TinyLoraPlan:
    """The plan of a TINYLORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    wanted = config.take("r", COUNT, default=2)
    length = config.take("u", COUNT, default=64)
    tying = config.take("weight_tying", SHARE, default=0.0)
    require_saved(config, "save_projection")
    config.close("TINYLORA", _REST)

    # PEFT's own: neighbours in the order of the model's modules, the remainder in the last group.
    groups = max(1, round(len(targets) * (1.0 - tying)))
    size = max(1, len(targets) // groups)
    group_of = {linear: min(index // size, groups - 1) for index, linear in enumerate(targets)}
    vectors = {}
    for group in dict.fromkeys(group_of.values()):
        vectors[group] = tensors.take(f"base_model.tinylora_v.{group}", reason="weight_tying makes such a group")
        require_shape(vectors[group], (length,), of="u")
    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape, reason = base.linears[linear], "target_modules selects its module"
        rank, place = min(wanted, shape.in_features, shape.out_features), f"{shape.module} of {base.name}"
        a, b, p = (tensors.take_of(linear, f"tinylora_{x}", reason=reason) for x in "ABP")
        require_shape(a, (rank, shape.in_features), of=place)
        require_shape(b, (shape.out_features, rank), of=place)
        require_shape(p, (length, rank, rank), of=f"u and r at {linear}")
        parts[linear] = _Part(a, b, p, group_of[linear])
    return TinyLoraPlan(parts, vectors)
