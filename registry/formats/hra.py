"""HRA: y = W H x + b, with H a product of r Householder reflections I − 2 u uᵀ: W plus an update of rank r.

H1 H2 … Hr = I − U T Uᵀ with T upper triangular (the compact WY form), so the update is −(W U T) Uᵀ. With apply_GS the
vectors are made orthogonal first, and T is 2 I.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {"bias": one_of("none"), "init_weights": FLAG}


@dataclass(frozen=True, slots=True)
class _Part:
    u: TensorEntry  # [in_features, rank]
    is_orthogonal: bool

    @property
    def rank(self) -> int:
        return self.u.shape[1]

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        vectors = read(self.u).double()
        directions, triangle = _orthogonal(vectors) if self.is_orthogonal else _compact(vectors)
        b = -(base.weight(linear).double() @ directions @ triangle)
        return LoweredLinear(a=directions.T.float().contiguous(), b=b.float())


def _orthogonal(vectors: "Tensor") -> "tuple[Tensor, Tensor]":
    """An orthonormal basis of the same spans, by Gram and Schmidt, and 2 I."""
    import torch

    return torch.linalg.qr(vectors).Q, 2 * torch.eye(vectors.shape[1], dtype=vectors.dtype)


def _compact(vectors: "Tensor") -> "tuple[Tensor, Tensor]":
    """The normalized vectors U, and T such that the product of their reflections is I − U T Uᵀ."""
    import torch

    u = vectors / vectors.norm(dim=0)
    rank = u.shape[1]
    triangle = torch.zeros(rank, rank, dtype=u.dtype)
    for i in range(rank):
        triangle[:i, i] = -2 * triangle[:i, :i] @ (u[:, :i].T @ u[:, i])
        triangle[i, i] = 2
    return u, triangle


def plan_hra(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of an HRA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=8)
    is_orthogonal = config.take("apply_GS", FLAG, default=False)
    config.close("HRA", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        u = tensors.take_of(linear, "hra_u", reason="target_modules selects its module")
        require_shape(u, (shape.in_features, rank), of=f"{shape.module} of {base.name}")
        parts[linear] = _Part(u, is_orthogonal)
    return LinearsPlan("HRA", parts)
