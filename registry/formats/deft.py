"""DEFT: y = W x + b + Q (s R − Pᵀ W) x: a part of W's outputs is taken out, and another put in its place.

With decomposition_method "relu" Q is the trained P and what takes out is relu(P); with "qr" both are P made orthogonal.
para takes out only. s = alpha / r, or 1 without alpha.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NULL, NUMBER, SHARE, Config, Rule, either, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "deft_dropout": SHARE,
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_scale": NUMBER,
    "init_weights": FLAG,
}


@dataclass(frozen=True, slots=True)
class _Part:
    p: TensorEntry  # [out_features, rank]
    r: TensorEntry | None  # [rank, in_features]; None with para
    is_orthogonal: bool
    scale: float

    @property
    def rank(self) -> int:
        return self.p.shape[1]

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        put, taken = _projection(read(self.p).double(), self.is_orthogonal)
        a = -(taken.T @ base.weight(linear).double())
        if self.r is not None:
            a += self.scale * read(self.r).double()
        return LoweredLinear(a=a.float(), b=put.float().contiguous())


def _projection(p: "Tensor", is_orthogonal: bool) -> "tuple[Tensor, Tensor]":
    """Q, and what W is multiplied by from the left, transposed."""
    import torch

    if is_orthogonal:
        p = torch.linalg.qr(p).Q
        return p, p
    return p, p.relu()


def plan_deft(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a DEFT adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    wanted = config.take("r", COUNT, default=8)
    method = config.take("decomposition_method", one_of("relu", "qr"), default="relu")
    takes_only = config.take("para", FLAG, default=False)
    alpha = config.take("alpha", either(INTEGER, NULL), default=None)
    config.close("DEFT", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape, reason = base.linears[linear], "target_modules selects its module"
        rank, place = min(wanted, shape.out_features), f"{shape.module} of {base.name}"
        p = tensors.take_of(linear, "deft_P", reason=reason)
        require_shape(p, (shape.out_features, rank), of=place)
        r = None if takes_only else tensors.take_of(linear, "deft_R", reason=reason)
        if r is not None:
            require_shape(r, (rank, shape.in_features), of=place)
        parts[linear] = _Part(p, r, method == "qr", alpha / rank if alpha else 1.0)
    return LinearsPlan("DEFT", parts)
