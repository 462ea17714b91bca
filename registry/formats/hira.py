"""HIRA: y = (W + W ∘ B A) x + b, number by number."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.dense import DensePlan
from hotshoe.registry.formats.peft_config import COUNT, FLAG, NULL, SHARE, TEXT, Config, Rule, either
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {
    "fan_in_fan_out": FLAG,  # how W is stored
    "hira_dropout": SHARE,
    "init_weights": either(either(FLAG, TEXT), NULL),
    "rank_pattern": Rule("an empty object", lambda value: value == {}),  # PEFT would make every linear's of rank r
}


@dataclass(frozen=True, slots=True)
class _Part:
    a: TensorEntry  # [r, in_features]
    b: TensorEntry  # [out_features, r]

    def update(self, linear: LinearId, read: Read, base: BaseWeights) -> "Tensor":
        return base.weight(linear) * (read(self.b) @ read(self.a))


def plan_hira(config: Config, tensors: Tensors, base: BaseShape) -> DensePlan:
    """The plan of a HIRA adapter; see `DenseFormat`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=32)
    config.close("HIRA", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        place = f"{shape.module} of {base.name}"
        a, b = (tensors.take_of(linear, f"hira_{x}", reason="target_modules selects its module") for x in "AB")
        require_shape(a, (rank, shape.in_features), of=place)
        require_shape(b, (shape.out_features, rank), of=place)
        parts[linear] = _Part(a, b)
    return DensePlan("HIRA", parts)
