"""UNILORA: y = W x + b + B A x, each number of A and B one of a single vector θ's, by an index, times a scale."""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NUMBER, SHARE, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_theta_d_bound": NUMBER,
    "init_weights": FLAG,
    "proj_seed": INTEGER,  # the indices are in the file
    "unilora_dropout": SHARE,
}


@dataclass(frozen=True, slots=True)
class _Part:
    places: tuple[TensorEntry, TensorEntry]  # in θ, of A [rank, in_features] and of B [out_features, rank]
    scales: tuple[TensorEntry, TensorEntry]  # the same


@dataclass(frozen=True, slots=True)
class UniLoraPlan:
    """One vector, and where each linear's factors take their numbers from it."""

    theta: TensorEntry
    parts: Mapping[LinearId, _Part]
    rank: int
    virtual_tokens: int = 0

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.parts)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        theta = read(self.theta)
        linears = {}
        for linear, part in self.parts.items():
            a, b = (theta[read(place)] * read(scale) for place, scale in zip(part.places, part.scales, strict=True))
            linears[linear] = LoweredLinear(a=a, b=b)
        return LoweredAdapter("UNILORA", linears)


def plan_unilora(config: Config, tensors: Tensors, base: BaseShape) -> UniLoraPlan:
    """The plan of a UNILORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=4)
    length = config.take("theta_d_length", COUNT, default=256)
    if not config.take("save_indices", FLAG, default=False):
        raise InvalidAdapter("save_indices", "expected true: the indices must be in the file")
    config.close("UNILORA", _REST)

    theta = tensors.take("base_model.unilora_theta_d", reason="every linear's factors are made of it")
    require_shape(theta, (length,), of="theta_d_length")
    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape, reason = base.linears[linear], "save_indices is true"
        place = f"{shape.module} of {base.name}"
        places, scales = [], []
        for name, sizes in (("A", (rank, shape.in_features)), ("B", (shape.out_features, rank))):
            suffix = f"unilora_indices_{name}"
            places.append(tensors.take_integers_of(linear, suffix, sizes, below=(length,), reason=reason))
            scales.append(tensors.take_of(linear, f"unilora_scales_{name}", reason=reason))
            require_shape(scales[-1], sizes, of=place)
        parts[linear] = _Part((places[0], places[1]), (scales[0], scales[1]))
    return UniLoraPlan(theta, parts, rank)
