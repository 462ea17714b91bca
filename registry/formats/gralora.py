"""GRALORA: a low-rank update for each block of W, cut k times across and k times down, and one of the whole beside it.

Block (m, n), of outputs and of inputs, has rank r / k: ranks m · r / k … of A's n-th part, which meet ranks n · r / k …
of B's m-th. All together they are one update of rank k r, whose rows and columns are zero outside their block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NUMBER, SHARE, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "fan_in_fan_out": FLAG,  # how W is stored
    "gralora_dropout": SHARE,
    "init_weights": FLAG,
}


@dataclass(frozen=True, slots=True)
class _Part:
    a: TensorEntry  # [k, in_features / k, r]
    b: TensorEntry  # [k, r, out_features / k]
    whole: tuple[TensorEntry, TensorEntry] | None  # [h, in_features], [out_features, h]
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0] * self.a.shape[2] + (self.whole[0].shape[0] if self.whole else 0)

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        import torch

        a, b = _spread(read(self.a), read(self.b, scale=self.scale))
        if self.whole:
            a = torch.cat((a, read(self.whole[0])))
            b = torch.cat((b, read(self.whole[1], scale=self.scale)), dim=1)
        return LoweredLinear(a=a.contiguous(), b=b.contiguous(), scale=self.scale)


def _spread(a: "Tensor", b: "Tensor") -> "tuple[Tensor, Tensor]":
    """[k r, in_features] and [out_features, k r]: the blocks' ranks one behind the other, by m, then n."""
    import torch

    k, inputs, rank = a.shape
    outputs, each = b.shape[2], rank // k
    wide, tall = torch.zeros(k, k, each, k, inputs), torch.zeros(k, k, each, k, outputs)
    for block in range(k):
        wide[:, block, :, block] = a[block].T.view(k, each, inputs)  # n: every m reads its own ranks of it
        tall[block, :, :, block] = b[block].view(k, each, outputs)  # m: every n adds to its own ranks of it
    return wide.view(k * rank, -1), tall.view(k * rank, -1).T


def plan_gralora(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a GRALORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=32)
    beside = config.take("hybrid_r", INTEGER, default=0)
    k = config.take("gralora_k", COUNT, default=2)
    alpha = config.take("alpha", NUMBER, default=64)
    config.close("GRALORA", _REST)
    if rank % k:
        raise InvalidAdapter("gralora_k", f"found {k}, expected a divisor of r, {rank}")

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape, reason = base.linears[linear], "target_modules selects its module"
        place = f"{shape.module} of {base.name}"
        a, b = (tensors.take_of(linear, f"gralora_{x}", reason=reason) for x in "AB")
        require_shape(a, (k, shape.in_features // k, rank), of=place)
        require_shape(b, (k, rank, shape.out_features // k), of=place)
        whole = None
        if beside:
            whole_a, whole_b = (
                tensors.take_of(linear, f"gralora_{x}_general.weight", reason="hybrid_r is not 0") for x in "AB"
            )
            require_shape(whole_a, (beside, shape.in_features), of=place)
            require_shape(whole_b, (shape.out_features, beside), of=place)
            whole = whole_a, whole_b
        parts[linear] = _Part(a, b, whole, alpha / (rank + beside))
    return LinearsPlan("GRALORA", parts)
