"""A dense matrix as a product of factors, its strongest singular directions first, to be cut where enough is kept."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class PrincipalFactors(NamedTuple):
    """Δ = b a, float64: row i of a and column i of b are Δ's i-th singular direction, its value shared evenly."""

    a: "Tensor"  # [k, in_features]
    b: "Tensor"  # [out_features, k]
    squares: "Tensor"  # [k], of the singular values, descending

    def cut(self, rank: int) -> "tuple[Tensor, Tensor]":
        """a and b of the nearest matrix of at most that rank, float32 and contiguous."""
        return self.a[:rank].float().contiguous(), self.b[:, :rank].float().contiguous()

    def energy(self, rank: int) -> float:
        """The share of ‖Δ‖² that `cut` keeps, 1 for Δ = 0."""
        total = float(self.squares.sum())
        return float(self.squares[:rank].sum()) / total if total else 1.0

    def rank_of(self, energy: float) -> int:
        """The least rank at which `energy` is kept; 0 for Δ = 0."""
        shares = self.squares.cumsum(0)
        total = float(shares[-1])
        return int((shares < energy * total).sum()) + 1 if total else 0


def principal_factors(matrix: "Tensor") -> PrincipalFactors:
    """The factors of a matrix [out_features, in_features], k its shorter side; equal matrices give equal factors.

    By the eigenvectors of the shorter side's Gram matrix, onto which Δ is projected: so that all of them together give
    Δ back to the last digits, though the squares of the least values are blurred.
    """
    import torch

    matrix = matrix.double()
    is_wide = matrix.shape[0] <= matrix.shape[1]
    gram = matrix @ matrix.T if is_wide else matrix.T @ matrix
    vectors = torch.linalg.eigh(gram).eigenvectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    vectors = vectors * largest.sign()  # an eigenvector's sign is anyone's choice
    projected = vectors.T @ matrix if is_wide else (matrix @ vectors).T  # [k, the longer side]
    squares = projected.square().sum(1)
    root = squares.sqrt().sqrt()[:, None]
    even = projected / root.clamp_min(torch.finfo(torch.float64).tiny)
    if is_wide:
        return PrincipalFactors(even, vectors * root.T, squares)
    return PrincipalFactors(root * vectors.T, even.T, squares)
