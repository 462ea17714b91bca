"""MISS: y = W x + b + Mᵀ S x, where row k of S sums every r-th input from the k-th on. Called BONE before.

In its mini form M is some columns, repeated. In its bat form the update is not of low rank, and it is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, SHARE, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {"bias": one_of("none"), "miss_dropout": SHARE}


@dataclass(frozen=True, slots=True)
class _Part:
    block: TensorEntry  # [rank, out_features], or a part of its columns

    @property
    def rank(self) -> int:
        return self.block.shape[0]

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        import torch

        shape, block = base.shape.linears[linear], read(self.block)
        repeats = shape.out_features // block.shape[1]
        places = torch.arange(shape.in_features)
        sums = torch.zeros(self.rank, shape.in_features)
        sums[places % self.rank, places] = 1.0
        return LoweredLinear(a=sums, b=block.repeat(1, repeats).T.contiguous())


def plan_miss(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a MISS adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=64)
    columns = config.take("mini_r", COUNT, default=1)
    form = config.take("init_weights", one_of(True, False, "mini"), default=True)
    config.close("MISS", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        width = columns if form == "mini" else shape.out_features
        if shape.out_features % width:
            raise InvalidAdapter("mini_r", f"found {width}, expected a divisor of {shape.out_features}, of {linear}")
        block = tensors.take_of(linear, "miss_block", reason="target_modules selects its module")
        require_shape(block, (rank, width), of=f"{shape.module} of {base.name}")
        parts[linear] = _Part(block)
    return LinearsPlan("MISS", parts)
