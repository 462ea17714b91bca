"""Merges by factors equal the definitions on dense matrices, which are written out here."""

import math
from collections.abc import Sequence

import canonical_adapters as canonical
import pytest
import torch
from torch import Tensor

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes import elementwise
from hotshoe.registry.recipes.elementwise import merge_elementwise
from hotshoe.registry.recipes.factors import Factors
from hotshoe.registry.recipes.merge_parameters import METHODS, MergeParameters
from hotshoe.registry.recipes.merging import Merge, merge

SHAPE = canonical.small_shape()
FIRST = LinearId(0, "q_proj")


class Weights:
    """A base of random weights."""

    def __init__(self, shape: BaseShape = SHAPE) -> None:
        self.shape = shape

    def bias(self, linear: LinearId) -> Tensor | None:
        return None

    def weight(self, linear: LinearId) -> Tensor:
        shape = self.shape.linears[linear]
        return torch.randn(shape.out_features, shape.in_features, generator=torch.Generator().manual_seed(3))


def parents(count: int = 3, *, scale: float = 1.0) -> list[LoweredAdapter]:
    """LoRAs of several ranks that have something in common; the last leaves most linears alone."""
    shared = canonical.lora(4, seed=9)
    found = []
    for index in range(count):
        targets = canonical.TARGETS if index + 1 < count else ("q_proj", "down_proj")
        own = canonical.lora(2 + index, seed=index, targets=targets)
        found.append(
            LoweredAdapter(
                "LORA", {name: together(own.linears[name], shared.linears[name], scale) for name in own.linears}
            )
        )
    return found


def together(own: LoweredLinear, shared: LoweredLinear, scale: float) -> LoweredLinear:
    assert own.a is not None and own.b is not None and shared.a is not None and shared.b is not None
    return LoweredLinear(a=torch.cat((own.a, shared.a)), b=scale * torch.cat((own.b, shared.b), dim=1))


def dense(adapter: LoweredAdapter, linear: LinearId) -> Tensor:
    found, shape = adapter.linears.get(linear), SHAPE.linears[linear]
    if found is None:
        return torch.zeros(shape.out_features, shape.in_features, dtype=torch.float64)
    assert found.a is not None and found.b is not None
    return found.b.double() @ found.a.double()


def run(adapters: Sequence[LoweredAdapter], weights: Sequence[float], method: str, **parameters: str) -> Merge:
    return merge(adapters, weights, MergeParameters.parse(method, parameters), Weights())


def check(found: Merge, expected: "dict[LinearId, Tensor]", *, tolerance: float = 1e-5) -> None:
    assert found.updates.keys() == expected.keys()
    for linear, delta in expected.items():
        a, b = found.updates[linear]
        assert (b.double() @ a.double() - delta).abs().max() <= tolerance * delta.abs().max(), linear


def linears(adapters: Sequence[LoweredAdapter]) -> list[LinearId]:
    return [linear for linear in SHAPE.linears if any(linear in adapter.linears for adapter in adapters)]


def arc(first: Tensor, second: Tensor, t: float) -> Tensor:
    """mergekit's slerp of two flat tensors."""
    one, two = first.norm(), second.norm()
    cosine = float((first * second).sum() / (one * two)) if one > 0 and two > 0 else 1.0
    if abs(cosine) > 0.9995:
        return (1 - t) * first + t * second
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * first + math.sin(t * angle) * second) / math.sin(angle)


@pytest.mark.parametrize("normalize", ["true", "false"])
def test_linear_is_the_weighted_sum(normalize: str) -> None:
    adapters, weights = parents(), [0.7, 0.5, -0.4]
    total = sum(weights) if normalize == "true" else 1.0
    found = run(adapters, weights, "linear", normalize=normalize)
    check(
        found,
        {x: sum(w * dense(a, x) for a, w in zip(adapters, weights, strict=True)) / total for x in linears(adapters)},
    )  # type: ignore[misc]
    assert found.energy_kept == 1.0


def test_cat_and_svd_are_linear_without_and_with_a_cut() -> None:
    adapters, weights = parents(), [0.7, 0.5, -0.4]
    for method, cut in (("cat", {}), ("svd", {"rank": "3"})):
        found, linear = run(adapters, weights, method, **cut), run(adapters, weights, "linear", **cut)
        assert found.energy_kept == linear.energy_kept
        for name, (a, b) in linear.updates.items():
            assert torch.equal(a, found.updates[name].a) and torch.equal(b, found.updates[name].b)
    assert max(a.shape[0] for a, _ in run(adapters, weights, "svd", rank="3").updates.values()) == 3


@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_slerp_goes_along_the_circle_between_two_updates(t: float) -> None:
    adapters = parents(2)
    check(
        run(adapters, [1, 1], "slerp", t=str(t)),
        {x: arc(dense(adapters[0], x), dense(adapters[1], x), t) for x in linears(adapters)},
    )


def test_slerp_between_weights_is_a_line_for_ordinary_updates_and_refused_for_others() -> None:
    small = parents(2, scale=1e-3)
    weights = Weights()
    expected = {}
    for linear in linears(small):
        base = weights.weight(linear).double()
        expected[linear] = arc(base + dense(small[0], linear), base + dense(small[1], linear), 0.3) - base
    check(run(small, [1, 1], "slerp", t="0.3", space="weights"), expected)
    with pytest.raises(InvalidAdapter, match="space"):
        run(parents(2, scale=1.0), [1, 1], "slerp", space="weights")


@pytest.mark.parametrize("row_wise", [False, True])
def test_nuslerp_takes_its_place_from_the_weights(row_wise: bool) -> None:
    adapters = parents(2)
    expected = {}
    for linear in linears(adapters):
        first, second = (dense(adapter, linear) for adapter in adapters)
        if row_wise:
            expected[linear] = torch.stack([arc(a, b, 0.75) for a, b in zip(first, second, strict=True)])
        else:
            expected[linear] = arc(first, second, 0.75)
    check(run(adapters, [0.5, 1.5], "nuslerp", row_wise=str(row_wise).lower()), expected)


def test_karcher_is_the_mean_direction_times_the_mean_length() -> None:
    adapters, weights = parents(), [1.0, 1.0, 2.0]
    expected = {}
    for linear in linears(adapters):
        vectors = [dense(adapter, linear).flatten() for adapter in adapters]
        shares = torch.tensor([w / 4 for w in weights], dtype=torch.float64)
        units = [v / v.norm() if v.norm() > 0 else v for v in vectors]
        mean = sum(s * u for s, u in zip(shares, units, strict=True))
        mean = mean / mean.norm()
        for _ in range(50):
            step = torch.zeros_like(mean)
            for share, unit in zip(shares, units, strict=True):
                if unit.norm() == 0:
                    continue
                angle = torch.dot(mean, unit).clamp(-1, 1).arccos()
                step += share * (angle / angle.sin() if angle > 1e-12 else 1.0) * (unit - angle.cos() * mean)
            if step.norm() < 1e-9:
                break
            mean = step.norm().cos() * mean + step.norm().sin() * step / step.norm()
        length = sum(s * v.norm() for s, v in zip(shares, vectors, strict=True))
        shape = SHAPE.linears[linear]
        expected[linear] = (length * mean).view(shape.out_features, shape.in_features)
    check(run(adapters, weights, "karcher"), expected, tolerance=1e-4)


def test_model_stock_shrinks_the_mean_by_how_little_updates_agree() -> None:
    adapters = parents()
    expected = {}
    for linear in linears(adapters):
        vectors = [dense(adapter, linear) for adapter in adapters]
        cosines = [
            float((a * b).sum() / (a.norm() * b.norm())) if a.norm() > 0 and b.norm() > 0 else 0.0
            for i, a in enumerate(vectors)
            for b in vectors[i + 1 :]
        ]
        cosine = sum(cosines) / len(cosines)
        expected[linear] = 3 * cosine / (1 + 2 * cosine) * sum(vectors) / 3  # type: ignore[operator]
    check(run(adapters, [1, 1, 1], "model_stock"), expected)


def test_cutting_to_a_rank_keeps_the_largest_singular_values_and_says_how_much_is_left() -> None:
    adapters = parents()
    whole, cut = run(adapters, [1, 1, 1], "linear"), run(adapters, [1, 1, 1], "linear", rank="3")
    kept = total = 0.0
    for linear in linears(adapters):
        svd = torch.linalg.svd(sum(dense(a, linear) for a in adapters), full_matrices=False)  # type: ignore[arg-type]
        best = svd.U[:, :3] * svd.S[:3] @ svd.Vh[:3]
        a, b = cut.updates[linear]
        assert a.shape[0] == 3 and (b.double() @ a.double() - best).abs().max() < 1e-5 * best.abs().max()
        kept, total = kept + float(svd.S[:3].square().sum()), total + float(svd.S.square().sum())
    assert cut.energy_kept == pytest.approx(kept / total, abs=1e-6) and whole.energy_kept == 1.0


def test_updates_that_cancel_each_other_have_no_mean_and_are_refused_not_divided_by() -> None:
    one = canonical.lora(4, seed=1)
    opposite = LoweredAdapter(
        "LORA",
        {name: LoweredLinear(a=linear.a, b=-linear.b) for name, linear in one.linears.items()},  # type: ignore[operator]
    )
    for method in ("model_stock", "karcher"):
        with pytest.raises(InvalidAdapter, match="point away from each other"):
            run([one, opposite], [1, 1], method)


# Number by number. The oracle is given the same random numbers, by the same tiles.


def updates_of(count: int, rows: int = 40, columns: int = 24) -> list[Factors]:
    generator = torch.Generator().manual_seed(1)
    return [
        Factors(torch.randn(3, columns, generator=generator), torch.randn(rows, 3, generator=generator))
        for _ in range(count)
    ]


def consensus(weighted: Tensor, weights: Sequence[float], *, by_sign: bool, normalize: bool) -> Tensor:
    mask = weighted != 0
    if by_sign:
        majority = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
        mask &= weighted.sign() == majority
    total = (weighted * mask).sum(0)
    if not normalize:
        return total
    divisor = (torch.tensor(weights)[:, None, None] * mask).sum(0)
    return total / torch.where(divisor.abs() < 1e-8, 1.0, divisor)


@pytest.mark.parametrize("tile", [7, 256])
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_trims_elects_signs_and_averages_those_that_agree(
    density: float, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elementwise, "TILE_ROWS", tile)
    updates, weights = updates_of(3), [1.0, 0.5, 0.8]
    trimmed = []
    for update in updates:
        delta = update.b @ update.a
        least = delta.abs().flatten().sort(descending=True).values[int(density * delta.numel()) - 1]
        trimmed.append(delta * (delta.abs() >= least))
    weighted = torch.stack([w * delta for w, delta in zip(weights, trimmed, strict=True)])
    expected = consensus(weighted, weights, by_sign=True, normalize=True)
    parameters = MergeParameters.parse("ties", {"density": str(density)})
    (a, b), kept, size = merge_elementwise(updates, weights, parameters, 24, name="x")
    assert (b @ a - expected).abs().max() < 1e-4
    assert kept == pytest.approx(1.0, abs=1e-4) and size == pytest.approx(float(expected.square().sum()), rel=1e-4)
    (a, b), kept, _ = merge_elementwise(updates, weights, parameters, 4, name="x")
    values = torch.linalg.svdvals(expected.double()).square()
    assert kept == pytest.approx(float(values[:4].sum() / values.sum()), abs=0.01)


def test_breadcrumbs_drop_the_largest_and_the_small() -> None:
    updates = updates_of(2)
    parts = []
    for update in updates:
        delta = update.b @ update.a
        order = delta.abs().flatten().sort(descending=True).values
        dropped, kept = int(0.1 * delta.numel()), int(0.4 * delta.numel())
        parts.append(delta * ((delta.abs() <= order[dropped]) & (delta.abs() >= order[dropped + kept - 1])))
    parameters = MergeParameters.parse("breadcrumbs", {"density": "0.4", "gamma": "0.1"})
    (a, b), *_ = merge_elementwise(updates, [1.0, 1.0], parameters, 24, name="x")
    assert (b @ a - sum(parts)).abs().max() < 1e-4


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della"])
def test_random_thinning_keeps_the_mean_and_depends_on_the_seed_alone(method: str) -> None:
    updates = updates_of(1, rows=200, columns=160)
    parameters = MergeParameters.parse(method, {"density": "0.5", "seed": "4", "normalize": "false"})
    merged = elementwise._Merged(updates, [1.0], parameters, "x")
    whole = torch.cat([tile for _, tile in merged.tiles()])
    assert torch.equal(whole, torch.cat([tile for _, tile in merged.tiles()]))
    delta = updates[0].b @ updates[0].a
    assert float((whole != 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((whole * delta).sum() / delta.square().sum()) == pytest.approx(1.0, abs=0.05)
    other = elementwise._Merged(updates, [1.0], MergeParameters.parse(method, {"seed": "5"}), "x")
    assert not torch.equal(whole, torch.cat([tile for _, tile in other.tiles()]))
    if method == "della":
        kept = (whole != 0).float()
        large = delta.abs() >= delta.abs().median()
        assert float(kept[large].mean()) > float(kept[~large].mean()) + 0.1


def test_l1_rescaling_keeps_the_sum_of_magnitudes() -> None:
    updates = updates_of(1)
    parameters = MergeParameters.parse("dare_linear", {"density": "0.3", "rescale": "l1"})
    whole = torch.cat([tile for _, tile in elementwise._Merged(updates, [1.0], parameters, "x").tiles()])
    assert float(whole.abs().sum()) == pytest.approx(float((updates[0].b @ updates[0].a).abs().sum()), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_equal_recipes_give_equal_bits(method: str) -> None:
    adapters, cut = parents(2), {"rank": "4"} if "rank" in METHODS[method][1] else {}
    first, second = (run(adapters, [1.0, 0.5], method, **cut) for _ in range(2))
    for linear, (a, b) in first.updates.items():
        assert torch.equal(a, second.updates[linear].a) and torch.equal(b, second.updates[linear].b)
        assert (a.shape[0] <= 4 or not cut) and a.isfinite().all() and b.isfinite().all()


# What is asked for.


@pytest.mark.parametrize(
    "method, parameters, field",
    [
        ("stir", {}, "method"),
        ("linear", {"t": "0.5"}, "parameters.t"),
        ("slerp", {"t": "1.5"}, "parameters.t"),
        ("slerp", {"space": "mars"}, "parameters.space"),
        ("ties", {"density": "0"}, "parameters.density"),
        ("ties", {"seed": "-1"}, "parameters.seed"),
        ("nuslerp", {"row_wise": "yes"}, "parameters.row_wise"),
        ("svd", {}, "parameters.rank"),
        ("svd", {"rank": "0"}, "parameters.rank"),
        ("cat", {"rank": "4"}, "parameters.rank"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_named(method: str, parameters: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidAdapter) as refusal:
        MergeParameters.parse(method, parameters)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    "method, weights, field",
    [
        ("slerp", [1.0, 1.0, 1.0], "sources"),
        ("linear", [1.0], "sources"),
        ("karcher", [1.0, -1.0], "sources.weight"),
        ("slerp", [1.0, 0.5], "sources.weight"),
        ("model_stock", [2.0, 1.0], "sources.weight"),
    ],
)
def test_parents_that_do_not_suit_the_method_are_refused(method: str, weights: list[float], field: str) -> None:
    with pytest.raises(InvalidAdapter) as refusal:
        MergeParameters.parse(method, {}).check_parents(weights)
    assert refusal.value.field == field
