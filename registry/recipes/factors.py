"""Low-rank updates Δ = B A by their factors: norms, singular values and truncation, without ever forming Δ.

With B = Qb Rb and Aᵀ = Qa Ra, the singular values of Δ are those of the small matrix Rb Raᵀ. All in float64.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Factors(NamedTuple):
    """Δ = b a: a is [rank, in_features], b is [out_features, rank]."""

    a: "Tensor"
    b: "Tensor"


class FactorSvd(NamedTuple):
    """Δ = left · diag(values) · rightᵀ, values descending."""

    left: "Tensor"  # [out_features, k], orthonormal columns
    values: "Tensor"  # [k]
    right: "Tensor"  # [in_features, k], orthonormal columns


def inner(first: Factors, second: Factors) -> float:
    """⟨Δ₁, Δ₂⟩, the sum of the products of their elements."""
    rows = first.b.double().T @ second.b.double()
    columns = first.a.double() @ second.a.double().T
    return float((rows * columns).sum())


def factor_svd(factors: Factors) -> FactorSvd:
    """The singular value decomposition of Δ, of as many values as its rank or its sides allow."""
    import torch

    q_left, r_left = torch.linalg.qr(factors.b.double())
    q_right, r_right = torch.linalg.qr(factors.a.double().T)
    left, values, right = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return FactorSvd(q_left @ left, values, q_right @ right.T)


def singular_values(factors: Factors) -> "Tensor":
    """[k] float64, descending."""
    import torch

    _, r_left = torch.linalg.qr(factors.b.double(), mode="r")
    _, r_right = torch.linalg.qr(factors.a.double().T, mode="r")
    values: Tensor = torch.linalg.svdvals(r_left @ r_right.T)
    return values


def concatenated(parts: Sequence[Factors]) -> Factors:
    """The sum of several updates of one linear, exact, of the sum of their ranks."""
    import torch

    return Factors(torch.cat([part.a for part in parts]), torch.cat([part.b for part in parts], dim=1))


def truncated(factors: Factors, rank: int) -> tuple[Factors, float]:
    """The nearest update of at most `rank`, float32, its scale shared evenly between a and b.

    Returns:
        The factors, and the share of ‖Δ‖² that they keep, 1 for Δ = 0.
    """
    svd = factor_svd(factors)
    values = svd.values[:rank]
    root = values.sqrt()
    total = float(svd.values.square().sum())
    kept = float(values.square().sum()) / total if total else 1.0
    a, b = root[:, None] * svd.right[:, :rank].T, svd.left[:, :rank] * root
    return Factors(a.float().contiguous(), b.float().contiguous()), kept
