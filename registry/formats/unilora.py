"""UNILORA: y = W x + b + B A x, each number of A and B one of a single vector θ's, by an index, times a scale.

The indices are in the file, or numpy's generator shuffles them by a seed: PCG64 gives the same on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId, LinearShape
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NUMBER, SHARE, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_MADE = 1 << 27  # numbers: half a gibibyte of them
_DEALT = [3, 3, 2, 2, 0, 1, 0, 3, 0, 2, 1]  # of 11 places below 4 by the seed 42

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_theta_d_bound": NUMBER,
    "init_weights": FLAG,
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


@dataclass(frozen=True, slots=True)
class SeededUniLoraPlan:
    """One vector, whose numbers a seed deals out to the linears' factors, each about as often as any other."""

    theta: TensorEntry
    shapes: Mapping[LinearId, LinearShape]  # in the order of the model's modules
    rank: int
    seed: int
    virtual_tokens: int = 0

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.shapes)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        import torch

        theta = read(self.theta)
        sizes = [size * self.rank for shape in self.shapes.values() for size in (shape.in_features, shape.out_features)]
        places = torch.from_numpy(dealt_places(sum(sizes), len(theta), self.seed))
        scaled = theta * torch.bincount(places, minlength=len(theta)).float().rsqrt().nan_to_num(posinf=0.0)
        factors = iter(scaled[places].split_with_sizes(sizes))
        linears = {
            linear: LoweredLinear(a=next(factors).view(self.rank, -1), b=next(factors).view(-1, self.rank))
            for linear in self.shapes
        }
        return LoweredAdapter("UNILORA", linears)


def dealt_places(count: int, length: int, seed: int) -> "NDArray[np.int64]":
    """As many places below `length`, each as often as any other or once more, in the order that a seed gives.

    Source: `UniLoraModel.generate_index` of PEFT.
    """
    random = np.random.default_rng(seed)
    places = np.repeat(np.arange(length), count // length)
    if rest := count % length:
        places = np.concatenate([places, random.choice(length, size=rest, replace=False)])
    random.shuffle(places)
    return places


def _require_known_generator() -> None:
    """numpy may change what its generator gives; then another version of it deals otherwise than PEFT did."""
    if dealt_places(11, 4, 42).tolist() != _DEALT:
        raise InvalidAdapter("save_indices", "expected true: this numpy's generator is not the one that PEFT dealt by")


def plan_unilora(config: Config, tensors: Tensors, base: BaseShape) -> UniLoraPlan | SeededUniLoraPlan:
    """The plan of a UNILORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=4)
    length = config.take("theta_d_length", COUNT, default=256)
    is_saved = config.take("save_indices", FLAG, default=False)
    seed = config.take("proj_seed", INTEGER, default=42)
    config.close("UNILORA", _REST)

    theta = tensors.take("base_model.unilora_theta_d", reason="every linear's factors are made of it")
    require_shape(theta, (length,), of="theta_d_length")
    if not is_saved:
        return _plan_by_seed(theta, {linear: base.linears[linear] for linear in targets}, rank, seed)
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


def _plan_by_seed(
    theta: TensorEntry, shapes: Mapping[LinearId, LinearShape], rank: int, seed: int
) -> SeededUniLoraPlan:
    _require_known_generator()
    made = rank * sum(shape.in_features + shape.out_features for shape in shapes.values())
    if made > _MOST_MADE:  # which nothing in the file is as large as
        raise InvalidAdapter("r", f"expected factors of at most {_MOST_MADE} numbers in all, found {made}")
    return SeededUniLoraPlan(theta, shapes, rank, seed)
