"""How two adapters of one base differ: norms of their updates, the angle between them, and how far apart they are."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.formats.base import BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes.dense_update import OF_WEIGHT, dense_update, parts, unmergeable_parts
from hotshoe.registry.recipes.factors import Factors, inner
from hotshoe.registry.validation import Pause, go_on

if TYPE_CHECKING:
    from torch import Tensor

_NOTHING = LoweredLinear()


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two updates Δ₁ and Δ₂: their squared norms and their inner product."""

    first: float
    second: float
    between: float

    @property
    def cosine(self) -> float | None:
        """None if one of them is 0."""
        lengths = math.sqrt(self.first * self.second)
        return self.between / lengths if lengths else None

    @property
    def distance(self) -> float:
        """‖Δ₁ − Δ₂‖ by the larger of the norms; 0 if both are 0."""
        larger = max(self.first, self.second)
        apart = max(0.0, self.first + self.second - 2 * self.between)
        return math.sqrt(apart / larger) if larger else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two adapters beside each other, in base order; `others` names what either has that is no update of a weight."""

    linears: Mapping[LinearId, Difference]
    others: tuple[str, ...]

    @property
    def whole(self) -> Difference:
        """All linears as one."""
        each = self.linears.values()
        return Difference(
            math.fsum(one.first for one in each),
            math.fsum(one.second for one in each),
            math.fsum(one.between for one in each),
        )


def compare(first: LoweredAdapter, second: LoweredAdapter, base: BaseWeights, *, pause: Pause = go_on) -> Comparison:
    """Compares two adapters; `pause` is called before each linear. Low-rank updates are never written out."""
    linears = {}
    for linear in base.shape.linears:
        pair = [adapter.linears.get(linear, _NOTHING) for adapter in (first, second)]
        if any(_updates(part) for part in pair):
            pause()
            linears[linear] = _difference(pair, linear, base)
    return Comparison(linears, _others((first, second)))


def _others(adapters: Iterable[LoweredAdapter]) -> tuple[str, ...]:
    names = {name for adapter in adapters for name in unmergeable_parts(adapter).split(", ") if name}
    for adapter in adapters:
        if any(linear.bias_delta is not None for linear in adapter.linears.values()):
            names.add("bias_delta")
    return tuple(sorted(names))


def _updates(linear: LoweredLinear) -> bool:
    return linear.a is not None or bool(parts(linear) & OF_WEIGHT)


def _difference(pair: Sequence[LoweredLinear], linear: LinearId, base: BaseWeights) -> Difference:
    if not any(parts(part) & OF_WEIGHT for part in pair):
        one, two = (_factors(part, linear, base) for part in pair)
        return Difference(inner(one, one), inner(two, two), inner(one, two))
    one_dense, two_dense = (_dense(part, linear, base) for part in pair)
    return Difference(
        float(one_dense.square().sum()), float(two_dense.square().sum()), float((one_dense * two_dense).sum())
    )


def _factors(part: LoweredLinear, linear: LinearId, base: BaseWeights) -> Factors:
    import torch

    if (factors := part.factors) is not None:
        return Factors(*factors)
    shape = base.shape.linears[linear]
    return Factors(torch.zeros(0, shape.in_features), torch.zeros(shape.out_features, 0))


def _dense(part: LoweredLinear, linear: LinearId, base: BaseWeights) -> "Tensor":
    import torch

    weight = base.weight(linear)
    update = dense_update(part, weight)
    return torch.zeros_like(weight).double() if update is None else update.double()
