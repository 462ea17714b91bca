"""LOHA and LOKR: updates that are products of two small updates, and exact low-rank updates themselves.

LOHA multiplies number by number: s (W1a W1b) ∘ (W2a W2b) has rank r²: every pair of columns and of rows.
LOKR takes the Kronecker product: s (W1 ⊗ W2), of which either may be a product itself; ranks multiply.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import IncompatibleAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.module_values import take_by_module
from hotshoe.registry.formats.peft_config import COUNT, FLAG, NUMBER, SHARE, TEXT, Config, Rule, either
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {
    "init_weights": either(FLAG, TEXT),  # where training began; its tensors are all in the file
    "module_dropout": SHARE,
    "rank_dropout": SHARE,
    "use_effective_conv2d": FLAG,  # of convolutions
}
_LOKR_REST: Mapping[str, Rule[object]] = {
    **_REST,
    # Which of the two factors are products, and their sizes: the tensors say so themselves.
    "decompose_both": FLAG,
    "decompose_factor": Rule("an integer", lambda value: type(value) is int),
    "rank_dropout_scale": FLAG,
}


@dataclass(frozen=True, slots=True)
class _HadamardPart:
    first: tuple[TensorEntry, TensorEntry]  # [out_features, r], [r, in_features]
    second: tuple[TensorEntry, TensorEntry]
    scale: float

    @property
    def rank(self) -> int:
        return self.first[1].shape[0] * self.second[1].shape[0]

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        (b1, a1), (b2, a2) = ((read(b), read(a)) for b, a in (self.first, self.second))
        a = (a1[:, None] * a2[None]).flatten(0, 1)
        b = (b1[:, :, None] * b2[:, None] * self.scale).flatten(1)
        return LoweredLinear(a=a, b=b, scale=self.scale)


def plan_loha(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a LOHA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank_of = take_by_module(config, "r", "rank_pattern", COUNT, 8)
    alpha_of = take_by_module(config, "alpha", "alpha_pattern", NUMBER, 8)
    config.close("LOHA", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        rank, place = rank_of(shape.module), f"{shape.module} of {base.name}"
        pairs = []
        for number in (1, 2):
            b, a = (tensors.take_of(linear, f"hada_w{number}_{x}", reason="target_modules selects it") for x in "ab")
            require_shape(b, (shape.out_features, rank), of=place)
            require_shape(a, (rank, shape.in_features), of=place)
            pairs.append((b, a))
        parts[linear] = _HadamardPart(pairs[0], pairs[1], alpha_of(shape.module) / rank)
    return LinearsPlan("LOHA", parts)


@dataclass(frozen=True, slots=True)
class _Factor:
    """One factor of a Kronecker product: a matrix, or the product of two."""

    whole: TensorEntry | None  # [out, in]
    halves: tuple[TensorEntry, TensorEntry] | None  # [out, r], [r, in]

    @property
    def shape(self) -> tuple[int, int]:
        if self.whole is not None:
            return self.whole.shape[0], self.whole.shape[1]
        assert self.halves is not None
        return self.halves[0].shape[0], self.halves[1].shape[1]

    @property
    def rank(self) -> int:
        return self.halves[0].shape[1] if self.halves else min(self.shape)

    def read(self, read: Read) -> "tuple[Tensor, Tensor]":
        """[out, rank] and [rank, in] whose product it is."""
        import torch

        if self.halves:
            return read(self.halves[0]), read(self.halves[1])
        assert self.whole is not None
        matrix = read(self.whole)
        if matrix.shape[0] <= matrix.shape[1]:
            return torch.eye(matrix.shape[0]), matrix
        return matrix, torch.eye(matrix.shape[1])


@dataclass(frozen=True, slots=True)
class _KroneckerPart:
    first: _Factor
    second: _Factor
    scale: float

    @property
    def rank(self) -> int:
        return self.first.rank * self.second.rank

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        import torch

        (b1, a1), (b2, a2) = self.first.read(read), self.second.read(read)
        return LoweredLinear(a=torch.kron(a1, a2), b=torch.kron(b1 * self.scale, b2), scale=self.scale)


def plan_lokr(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a LOKR adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank_of = take_by_module(config, "r", "rank_pattern", COUNT, 8)
    alpha_of = take_by_module(config, "alpha", "alpha_pattern", NUMBER, 8)
    config.close("LOKR", _LOKR_REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        rank = rank_of(shape.module)
        first, second = (_take_factor(linear, f"lokr_w{number}", tensors, rank) for number in (1, 2))
        sizes = tuple(a * b for a, b in zip(first.shape, second.shape, strict=True))
        if sizes != (shape.out_features, shape.in_features):
            raise IncompatibleAdapter(
                f"{shape.module}.lokr_w1",
                f"found {list(first.shape)} ⊗ {list(second.shape)}, expected a product of shape "
                f"[{shape.out_features}, {shape.in_features}] for {shape.module} of {base.name}",
            )
        parts[linear] = _KroneckerPart(first, second, alpha_of(shape.module) / rank)
    return LinearsPlan("LOKR", parts)


def _take_factor(linear: LinearId, name: str, tensors: Tensors, rank: int) -> _Factor:
    if tensors.has_of(linear, name):
        whole = tensors.take_of(linear, name, reason="target_modules selects its module")
        require_shape(whole, (None, None), of=f"{name} of {linear}")
        return _Factor(whole, None)
    b, a = (tensors.take_of(linear, f"{name}_{x}", reason=f"{name} is not there as a whole") for x in "ab")
    require_shape(b, (None, rank), of=f"{name}_a of {linear}")
    require_shape(a, (rank, None), of=f"{name}_b of {linear}")
    return _Factor(None, (b, a))
