"""New low-rank adapters from several: Σ cᵢ Δᵢ for each linear, with coefficients from inner products alone.

linear        cᵢ = wᵢ, or wᵢ over the sum of all if `normalize`
cat, svd      PEFT's names for it: never cut, and cut to a `rank` that must be given
slerp         of two: along the great circle between them, `t` of the way; with space=weights between W + Δ₁ and W + Δ₂
nuslerp       of two: the same, t from the weights; with `row_wise` for each output by itself
karcher       the mean on the sphere of directions, times the mean of the lengths
model_stock   the mean of all, shrunk by how little they agree
and those of `elementwise`, which look at each number of an update and have no coefficients.

What comes out is exact, of the sum of the ranks, unless it is cut to a `rank`. Definitions are mergekit's, on each
linear's own; where updates are nearly parallel (|cos| > 0.9995), circles are lines there too.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.recipes.elementwise import ELEMENTWISE, merge_elementwise
from hotshoe.registry.recipes.factors import Factors, concatenated, inner, truncated
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.validation import Pause, go_on

if TYPE_CHECKING:
    from torch import Tensor

_PARALLEL = 0.9995  # beyond, mergekit goes straight
_OPPOSITE = 1e-8
_KARCHER_STEPS, _KARCHER_END = 10, 1e-5


class Merge(NamedTuple):
    """The merged updates."""

    updates: Mapping[LinearId, Factors]
    energy_kept: float  # share of ‖Δ‖² that cutting to a rank kept, over all linears; 1 if nothing was cut
    size: float = 0.0  # that ‖Δ‖²


@dataclass(frozen=True, slots=True)
class _Parents:
    """One linear's updates of all parents, and their weights."""

    linear: LinearId
    updates: Sequence[Factors]
    weights: Sequence[float]
    weight: "Callable[[], Tensor]"  # the served W, [out_features, in_features]

    def gram(self) -> "Tensor":
        """[n, n] float64: inner products of the updates."""
        import torch

        return torch.tensor([[inner(a, b) for b in self.updates] for a in self.updates], dtype=torch.float64)

    def require_common_direction(self, agreement: float) -> None:
        """Raises InvalidAdapter if the sum of directions, of this squared length, is nothing but rounding."""
        if agreement < _OPPOSITE:
            raise InvalidAdapter("sources", f"updates of {self.linear} point away from each other and have no mean")


Coefficients = Callable[[_Parents, MergeParameters], "Sequence[float | Tensor]"]  # a number, or one for each output


def merge(
    adapters: Sequence[LoweredAdapter],
    weights: Sequence[float],
    parameters: MergeParameters,
    base: BaseWeights,
    *,
    pause: Pause = go_on,
) -> Merge:
    """Merges the low-rank updates of adapters of one base; `pause` is called before each linear.

    Raises:
        InvalidAdapter: the method has no low-rank result for them.
    """
    updates: dict[LinearId, Factors] = {}
    kept = total = 0.0
    for linear in base.shape.linears:
        if not any(linear in adapter.linears for adapter in adapters):
            continue
        pause()
        factors = [_update_of(adapter, linear, base) for adapter in adapters]
        group = _Parents(linear, factors, weights, partial(base.weight, linear))
        merged, share, size = _merge_linear(group, parameters)
        updates[linear] = merged
        kept, total = kept + share * size, total + size
    return Merge(updates, kept / total if total else 1.0, total)


def _update_of(adapter: LoweredAdapter, linear: LinearId, base: BaseWeights) -> Factors:
    """Of rank 0 where the adapter leaves the linear alone."""
    import torch

    found, shape = adapter.linears.get(linear), base.shape.linears[linear]
    if found is None or (factors := found.factors) is None:
        return Factors(torch.zeros(0, shape.in_features), torch.zeros(shape.out_features, 0))
    return Factors(*factors)


def _merge_linear(group: _Parents, parameters: MergeParameters) -> tuple[Factors, float, float]:
    """The merged update, the share of its ‖Δ‖² that is left of it, and that ‖Δ‖²."""
    if parameters.method in ELEMENTWISE:
        most = parameters.rank or sum(update.a.shape[0] for update in group.updates)
        return merge_elementwise(group.updates, group.weights, parameters, most, name=str(group.linear))
    coefficients = COEFFICIENTS[parameters.method](group, parameters)
    scaled = [
        Factors(update.a, update.b * (c if isinstance(c, float) else c[:, None].to(update.b)))
        for update, c in zip(group.updates, coefficients, strict=True)
    ]
    whole = concatenated(scaled)
    size = inner(whole, whole)
    if not parameters.rank or whole.a.shape[0] <= parameters.rank:
        return whole, 1.0, size
    cut, share = truncated(whole, parameters.rank)
    return cut, share, size


def _linear(group: _Parents, parameters: MergeParameters) -> Sequence[float]:
    return parameters.shares(group.weights)


def _slerp(group: _Parents, parameters: MergeParameters) -> Sequence[float]:
    gram = group.gram()
    if parameters.space == "weights":
        return _slerp_of_weights(group, gram, parameters.t)
    return _circle(float(gram[0, 0]), float(gram[1, 1]), float(gram[0, 1]), parameters.t)


def _slerp_of_weights(group: _Parents, gram: "Tensor", t: float) -> Sequence[float]:
    """As between W + Δ₁ and W + Δ₂; where that is not a line, W itself is scaled, which no low-rank update can."""
    weight = group.weight().double()
    own = float(weight.square().sum())
    crossed = [float(((weight.T @ u.b.double()) * u.a.double().T).sum()) for u in group.updates]
    first, second = (own + 2 * crossed[i] + float(gram[i, i]) for i in (0, 1))
    between = own + crossed[0] + crossed[1] + float(gram[0, 1])
    if abs(between) <= _PARALLEL * math.sqrt(first * second):
        raise InvalidAdapter(
            "space", "expected delta: these updates are so large that a path between the weights scales W itself"
        )
    return [1.0 - t, t]


def _circle(first: float, second: float, between: float, t: float) -> tuple[float, float]:
    """Coefficients of two vectors, by their squares and their product; one that is 0 has no direction to turn to."""
    lengths = math.sqrt(first * second)
    cosine = between / lengths if lengths else 1.0
    if abs(cosine) > _PARALLEL:
        return 1.0 - t, t
    angle = math.acos(cosine)
    return math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def _nuslerp(group: _Parents, parameters: MergeParameters) -> "Sequence[float | Tensor]":
    import torch

    first, second = group.weights
    t = second / (first + second)
    if not parameters.row_wise:
        gram = group.gram()
        return _circle(float(gram[0, 0]), float(gram[1, 1]), float(gram[0, 1]), t)
    rows = [[_row_products(a, b) for b in group.updates] for a in group.updates]
    pairs = zip(rows[0][0].tolist(), rows[1][1].tolist(), rows[0][1].tolist(), strict=True)
    return list(torch.tensor([_circle(*pair, t) for pair in pairs], dtype=torch.float64).T)


def _row_products(first: Factors, second: Factors) -> "Tensor":
    """[out_features] float64: inner products of the updates' rows."""
    between = first.a.double() @ second.a.double().T
    return ((first.b.double() @ between) * second.b.double()).sum(1)


def _karcher(group: _Parents, parameters: MergeParameters) -> Sequence[float]:
    """Iterates on coefficients of the unit vectors; only their inner products are needed."""
    import torch

    gram = group.gram()
    lengths = gram.diagonal().sqrt()
    shares = torch.tensor(group.weights, dtype=torch.float64)
    shares = shares / shares.sum()
    alive = lengths > 0
    if not alive.any():
        return [0.0] * len(group.updates)
    units = torch.where(alive, 1.0 / lengths.clamp_min(1e-300), 0.0)
    angles = gram * units[:, None] * units  # cosines between unit vectors
    mean = shares * alive
    group.require_common_direction(float(mean @ angles @ mean))
    mean = mean / (mean @ angles @ mean).sqrt()
    for _ in range(_KARCHER_STEPS):
        cosines = (angles @ mean).clamp(-1, 1)
        theta = cosines.arccos()
        away = torch.where(theta > 1e-12, theta / theta.sin().clamp_min(1e-300), 1.0) * shares * alive
        step = away - (away @ cosines) * mean  # the mean of the tangents that lead to each
        size = float((step @ angles @ step).clamp_min(0).sqrt())
        if size < _KARCHER_END:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
    return ((shares @ lengths) * mean * units).tolist()


def _model_stock(group: _Parents, parameters: MergeParameters) -> Sequence[float]:
    gram, count = group.gram(), len(group.updates)
    lengths = gram.diagonal().sqrt()
    cosines = gram / (lengths[:, None] * lengths).clamp_min(1e-300)
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1)))
    group.require_common_direction(agreement := 1 + (count - 1) * cosine)
    share = count * cosine / agreement
    return [share / count] * count


COEFFICIENTS: Mapping[str, Coefficients] = {
    "cat": _linear,
    "karcher": _karcher,
    "linear": _linear,
    "model_stock": _model_stock,
    "nuslerp": _nuslerp,
    "slerp": _slerp,
    "svd": _linear,
}
