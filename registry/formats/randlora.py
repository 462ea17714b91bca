"""RANDLORA: y = W x + b + s Σ Bᵢ diag(λᵢ) A diag(γᵢ) x, random bases that all linears share: exact, but of full rank.

PEFT writes the shared A and B once for the model and again for each linear; they must be the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.dense import DensePlan
from hotshoe.registry.formats.peft_config import (
    COUNT,
    FLAG,
    INTEGER,
    NUMBER,
    SHARE,
    Config,
    Rule,
    one_of,
    require_saved,
)
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_weights": FLAG,
    "projection_prng_key": INTEGER,  # A and B are in the file
    "randlora_dropout": SHARE,
    # How A and B were drawn.
    "sparse": FLAG,
    "very_sparse": FLAG,
}
_SUFFIXES = ("A", "B", "lambda", "gamma")
_SHARED = ("base_model.randlora_A", "base_model.randlora_B")


class _Shared:
    """A matrix of the model's, and what must be copies of it."""

    def __init__(self, entry: TensorEntry) -> None:
        self.entry = entry
        self._values: Tensor | None = None

    def read(self, copy: TensorEntry, read: Read) -> "Tensor":
        """Its values; InvalidAdapter if the copy has others."""
        if self._values is None:
            self._values = read(self.entry)
        if not self._values.equal(read(copy)):
            raise InvalidAdapter(copy.name, f"differs from {self.entry.name}, of which it should be a copy")
        return self._values


@dataclass(frozen=True, slots=True)
class _Part:
    a: TensorEntry  # [r, 1, at least the shorter side]
    b: TensorEntry  # [at least the longer side, at least n, r]
    strengths: TensorEntry  # λ, [r, n]
    gains: TensorEntry  # γ, [n, the shorter side]
    shared: tuple[_Shared, _Shared]  # of a and b
    scale: float

    def update(self, linear: LinearId, read: Read, base: BaseWeights) -> "Tensor":
        shape = base.shape.linears[linear]
        long, short = max(shape.out_features, shape.in_features), min(shape.out_features, shape.in_features)
        a, b = (shared.read(copy, read) for shared, copy in zip(self.shared, (self.a, self.b), strict=True))
        strengths, gains = read(self.strengths), read(self.gains)
        bases = b[:long, : gains.shape[0]].flatten(1)  # [long, n r]
        scaled = (strengths[:, :, None] * a[:, :, :short] * gains).flatten(0, 1)  # [r n, short], PEFT's order
        update = bases @ scaled * self.scale
        return update if shape.in_features == short else update.T


def plan_randlora(config: Config, tensors: Tensors, base: BaseShape) -> DensePlan:
    """The plan of a RANDLORA adapter; see `DenseFormat`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=32)
    alpha = config.take("randlora_alpha", NUMBER, default=640)
    require_saved(config, "save_projection")
    config.close("RANDLORA", _REST)

    first, second = (_Shared(tensors.take(name, reason="save_projection is true")) for name in _SHARED)
    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape, reason = base.linears[linear], "target_modules selects its module"
        long, short = max(shape.out_features, shape.in_features), min(shape.out_features, shape.in_features)
        count, place = -(-short // rank), f"{shape.module} of {base.name}"
        a, b, strengths, gains = (tensors.take_of(linear, f"randlora_{x}", reason=reason) for x in _SUFFIXES)
        require_shape(a, (rank, 1, None), of=place)
        require_shape(b, (None, None, rank), of=place)
        require_shape(strengths, (rank, count), of=place)
        require_shape(gains, (count, short), of=place)
        if a.shape[2] < short or b.shape[0] < long or b.shape[1] < count:
            raise InvalidAdapter(a.name, f"found {list(a.shape)} and {list(b.shape)}, too small for {place}")
        parts[linear] = _Part(a, b, strengths, gains, (first, second), alpha / rank)
    return DensePlan("RANDLORA", parts)
