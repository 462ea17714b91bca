"""BEFT: y = W x + b + d, a learned bias beside the base's."""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.peft_config import FLAG, Config, Rule
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import QUERIES_AND_VALUES, take_targets
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {"init_weights": FLAG}


@dataclass(frozen=True, slots=True)
class _Part:
    bias: TensorEntry  # [1, out_features]
    rank: int = 0

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        return LoweredLinear(bias_delta=read(self.bias).flatten())


def plan_beft(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a BEFT adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=False, defaults=dict.fromkeys(QUERIES_AND_VALUES, ("v_proj",)))
    config.close("BEFT", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        bias = tensors.take_of(linear, "beft_bias", reason="target_modules selects its module")
        require_shape(bias, (1, shape.out_features), of=f"{shape.module} of {base.name}")
        parts[linear] = _Part(bias)
    return LinearsPlan("BEFT", parts)
