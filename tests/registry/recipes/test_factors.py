"""Algebra on factors gives what the dense matrices give."""

import pytest
import torch

from hotshoe.registry.recipes.factors import Factors, concatenated, factor_svd, inner, singular_values, truncated


def factors(rank: int, *, seed: int = 0, out_features: int = 24, in_features: int = 40) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    return Factors(
        torch.randn(rank, in_features, generator=generator), torch.randn(out_features, rank, generator=generator)
    )


def dense(part: Factors) -> torch.Tensor:
    return part.b.double() @ part.a.double()


def test_an_inner_product_is_the_dense_one() -> None:
    one, other = factors(3), factors(5, seed=1)
    assert inner(one, other) == pytest.approx(float((dense(one) * dense(other)).sum()), rel=1e-12)


@pytest.mark.parametrize("rank", [1, 6, 30])  # 30: more than out_features
def test_singular_values_and_vectors_are_the_dense_ones(rank: int) -> None:
    part = factors(rank)
    count = min(rank, 24)
    expected = torch.linalg.svdvals(dense(part))[:count]
    svd = factor_svd(part)
    assert torch.allclose(singular_values(part), expected, rtol=1e-10)
    assert torch.allclose(svd.values, expected, rtol=1e-10)
    assert torch.allclose(svd.left * svd.values @ svd.right.T, dense(part), atol=1e-10)


def test_truncation_is_the_dense_truncation_and_tells_what_it_keeps() -> None:
    part = concatenated([factors(4), factors(5, seed=1)])
    assert torch.allclose(dense(part), dense(factors(4)) + dense(factors(5, seed=1)), atol=1e-12)
    left, values, right = torch.linalg.svd(dense(part), full_matrices=False)
    kept, energy = truncated(part, 3)
    assert kept.a.shape == (3, 40) and kept.b.shape == (24, 3)
    assert torch.allclose(dense(kept), left[:, :3] * values[:3] @ right[:3], atol=1e-4)
    assert energy == pytest.approx(float(values[:3].square().sum() / values.square().sum()), rel=1e-9)
    whole, energy = truncated(part, 9)
    assert energy == pytest.approx(1.0) and torch.allclose(dense(whole), dense(part), atol=1e-4)


def test_an_update_of_zero_loses_nothing() -> None:
    nothing = Factors(factors(2).a, torch.zeros(24, 2))
    kept, energy = truncated(nothing, 1)
    assert energy == 1.0 and not dense(kept).any()
