"""Updates between two models: the ranks that their energy needs, and which are not worth having as factors."""

import re

import pytest
import torch
from tiny_models import ModelWeights, tiny_llama

from hotshoe.registry.formats.base import LinearId
from hotshoe.registry.recipes.extract import Cut, extract

BASE = ModelWeights(tiny_llama())
CHANGED = {LinearId(0, "q_proj"): 3, LinearId(1, "down_proj"): 5}


def tuned_by(updates):
    return lambda linear: BASE.weight(linear) + updates.get(linear, 0)


def low_rank_updates(scale=0.02):
    generator = torch.Generator().manual_seed(4)
    return {
        linear: scale
        * torch.randn(shape.out_features, rank, generator=generator)
        @ torch.randn(rank, shape.in_features, generator=generator)
        for linear, rank in CHANGED.items()
        for shape in [BASE.shape.linears[linear]]
    }


def dense_updates():
    generator = torch.Generator().manual_seed(5)
    return {linear: 0.01 * torch.randn(s.out_features, s.in_features, generator=generator) for linear, s in LINEARS}


LINEARS = tuple(BASE.shape.linears.items())


def test_a_low_rank_update_is_found_with_its_rank_where_it_is_and_nowhere_else():
    updates = low_rank_updates()
    found = extract(tuned_by(updates), BASE.weight, BASE.shape, Cut(energy=0.999999))
    assert {linear: factors.a.shape[0] for linear, factors in found.updates.items()} == CHANGED
    for linear, factors in found.updates.items():
        assert (factors.b @ factors.a - updates[linear]).abs().max() <= 1e-6
        weight = BASE.weight(linear)
        assert found.linears[linear].relative_norm == pytest.approx((updates[linear].norm() / weight.norm()).item())
    assert found.energy == pytest.approx(1) and found.flatness == ""
    assert {linear.rank for linear in found.linears.values()} == {0, 3, 5}


def test_a_share_of_the_energy_takes_each_linear_s_least_rank():
    found = extract(tuned_by(dense_updates()), BASE.weight, BASE.shape, Cut(energy=0.6))
    for linear, part in found.linears.items():
        values = torch.linalg.svdvals(tuned_by(dense_updates())(linear) - BASE.weight(linear)).double().square()
        shares = values.cumsum(0) / values.sum()
        assert shares[part.rank - 1] >= 0.6 > shares[part.rank - 2]
        assert part.energy == pytest.approx(float(shares[part.rank - 1]), abs=1e-5)


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        (Cut(rank=2), r"rank 2 keeps .*50\.0% is wanted"),
        (Cut(energy=0.95, max_rank=8), r"rank 8 keeps .*95\.0% is wanted"),
        (Cut(energy=0.95), r"as many numbers as the weights"),
    ],
)
def test_a_flat_spectrum_is_called_one(cut, said):
    found = extract(tuned_by(dense_updates()), BASE.weight, BASE.shape, cut)
    assert re.search(said, found.flatness)


def test_equal_models_have_no_updates():
    found = extract(BASE.weight, BASE.weight, BASE.shape, Cut(rank=4))
    assert not found.updates and found.energy == 1 and found.flatness == ""


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "rank"),
        ({"rank": 3, "energy": 0.5}, "rank"),
        ({"rank": 0}, "rank"),
        ({"rank": 300}, "rank"),
        ({"energy": 1.0}, "rank_energy"),
        ({"energy": 0.0}, "rank_energy"),
    ],
)
def test_a_cut_is_by_one_sensible_number(fields, field):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        Cut(**fields)
