"""Singular values of a base weight, the strength at which an update leaves them behind, and intruder dimensions.

An intruder dimension is one of the leading left singular vectors of W + Δ that resembles none of W's:
max_i |uⱼᵀ u⁰ᵢ| < 0.5. Source: https://arxiv.org/abs/2410.21228. All in float64, by the Gram matrix of the shorter
side; what is compared are leading vectors, which the squaring does not blur.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

LEADING = 10  # vectors of W + Δ that are looked at
RESEMBLANCE = 0.5  # below it a vector is an intruder


def weight_spectrum(weight: "Tensor") -> "Tensor":
    """The singular values of a matrix, [min(out, in)] float64, descending."""
    import torch

    values: Tensor = torch.linalg.eigvalsh(_gram(weight.double())).flip(0).clamp_min(0).sqrt()
    return values


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What the screen reads of a base weight W."""

    out_features: int
    in_features: int
    norm: float  # ‖W‖
    largest: float  # σ₁
    threshold: float  # θ*: from here on a direction unrelated to W's takes one of the leading places

    @classmethod
    def of(cls, values: "Tensor", *, out_features: int, in_features: int) -> "Spectrum":
        """Takes W's singular values, descending.

        θ* is where a spike joins the leading ones of a matrix whose other singular values are `values[LEADING:]`
        (the D-transform of a spiked matrix): with z = σ₁₀, S the values below, k = |S|,
            θ*⁻² = (Σ_S z/(z²−σ²) + (out−k)/z) / out · (Σ_S z/(z²−σ²) + (in−k)/z) / in
        """
        values = values.double()
        leading = min(LEADING, values.shape[0])
        edge, rest = float(values[leading - 1]), values[leading:]
        return cls(
            out_features=out_features,
            in_features=in_features,
            norm=float(values.norm()),
            largest=float(values[0]),
            threshold=_threshold(edge, rest, out_features, in_features),
        )


class LeadingVectors(NamedTuple):
    """The leading singular vectors of W + Δ beside all of W's."""

    left: "Tensor"  # [out_features, k]
    values: "Tensor"  # [k], descending
    right: "Tensor"  # [in_features, k]
    resemblance: "Tensor"  # [k]: the largest |uⱼᵀ u⁰ᵢ|

    @property
    def intruders(self) -> "Tensor":
        """[k] bool."""
        return self.resemblance < RESEMBLANCE


def left_vectors(weight: "Tensor") -> "Tensor":
    """All left singular vectors of a matrix, [out_features, min(out, in)] float64, by descending value."""
    return _svd(weight.double(), min(weight.shape)).left


def leading_vectors(weight: "Tensor", update: "Tensor", *, original: "Tensor | None" = None) -> LeadingVectors:
    """Compares W + Δ with W, both [out_features, in_features]. Takes two eigendecompositions of the shorter side.

    `original` is W's `left_vectors`, if they are known, which saves one.
    """
    import torch

    left, values, right = _svd(weight.double() + update.double(), LEADING)
    if original is None:
        original = left_vectors(weight)
    resemblance: Tensor = (left.T @ original).abs().amax(dim=1)
    assert resemblance.dtype is torch.float64
    return LeadingVectors(left, values, right, resemblance)


class _Svd(NamedTuple):
    left: "Tensor"
    values: "Tensor"
    right: "Tensor"


def _svd(matrix: "Tensor", count: int) -> _Svd:
    """The `count` leading singular triplets."""
    import torch

    squares, vectors = torch.linalg.eigh(_gram(matrix))
    count = min(count, squares.shape[0])
    values = squares.flip(0)[:count].clamp_min(0).sqrt()
    short = vectors.flip(1)[:, :count]
    is_wide = matrix.shape[0] <= matrix.shape[1]
    long = (matrix.T if is_wide else matrix) @ short / values.clamp_min(torch.finfo(torch.float64).tiny)
    return _Svd(short, values, long) if is_wide else _Svd(long, values, short)


def _gram(matrix: "Tensor") -> "Tensor":
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _threshold(edge: float, rest: "Tensor", out_features: int, in_features: int) -> float:
    if edge <= 0:
        return 0.0
    gaps = edge**2 - rest.square()
    if bool((gaps <= 0).any()):  # equal values: anything joins them
        return 0.0
    total, count = float((edge / gaps).sum()), rest.shape[0]
    transform = (total + (out_features - count) / edge) / out_features
    transform *= (total + (in_features - count) / edge) / in_features
    return 1 / math.sqrt(transform)
