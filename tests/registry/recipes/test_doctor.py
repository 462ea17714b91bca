"""The doctor finds what was put into synthetic adapters of real weights, and says nothing of sound ones."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from hotshoe.kernels.reference import dequantize_nf4
from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.kind import lower_adapter
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes.doctor import Grade, diagnose, report_of
from hotshoe.registry.recipes.factors import Factors, inner
from hotshoe.registry.recipes.requantized import kept
from hotshoe.registry.recipes.spectrum import Spectrum, leading_vectors, weight_spectrum
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.gguf_file import GgufFile
from hotshoe.server.model.loader import _packaged_file
from hotshoe.server.model.quantize import quantize_nf4

# Of three layers: the attention's square, its short and the feed-forward's wide weights.
MODULES = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
LINEARS = [LinearId(layer, module.split(".")[1]) for layer in (3, 15, 27) for module in MODULES]
# Intruder dimensions a linear, by rank and ‖Δ‖ / ‖W‖, of updates in random directions: between what was measured over
# different linears of this model.
EXPECTED = {
    1: {0.02: (0, 0.1), 0.1: (0.4, 1), 0.4: (0.9, 1)},
    4: {0.02: (0, 0), 0.1: (0, 0.7), 0.4: (3, 4)},
    16: {0.02: (0, 0), 0.1: (0, 0.2), 0.4: (6.5, 8.5)},
    64: {0.02: (0, 0), 0.1: (0, 0), 0.4: (2.5, 6.5)},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small matrices gain nothing by more, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class RealWeights:
    """SmolLM2 as a base, its weights as the file has them."""

    @property
    def shape(self) -> BaseShape:
        return _shape()

    def bias(self, linear: LinearId) -> None:
        return None

    def weight(self, linear: LinearId) -> torch.Tensor:
        return _weight(linear)

    def spectrum(self, linear: LinearId) -> Spectrum:
        return _spectrum(linear)


@cache
def _gguf() -> GgufFile:
    return GgufFile(_packaged_file())


@cache
def _shape() -> BaseShape:
    return spec_from_config(_gguf().config).base_shape(name="SmolLM2-135M-Instruct", digest=f"sha256:{'0' * 64}")


@cache
def _weight(linear: LinearId) -> torch.Tensor:
    return _gguf().tensor(f"{_shape().linears[linear].module}.weight").float()


@cache
def _spectrum(linear: LinearId) -> Spectrum:
    weight = _weight(linear)
    return Spectrum.of(weight_spectrum(weight), out_features=weight.shape[0], in_features=weight.shape[1])


BASE = RealWeights()


def random_update(linear: LinearId, *, rank: int, relative_norm: float, seed: int = 0) -> LoweredLinear:
    """An update in random directions."""
    out_features, in_features = BASE.weight(linear).shape
    generator = torch.Generator().manual_seed(1000 * seed + 10 * linear.layer + rank)
    a = torch.randn(rank, in_features, generator=generator)
    b = torch.randn(out_features, rank, generator=generator)
    factor = relative_norm * BASE.spectrum(linear).norm / math.sqrt(inner(Factors(a, b), Factors(a, b)))
    return LoweredLinear(a=a, b=factor * b, scale=2.0)


def adapter(*, rank: int, relative_norm: float, linears: list[LinearId] = LINEARS) -> LoweredAdapter:
    return LoweredAdapter(
        "LORA", {linear: random_update(linear, rank=rank, relative_norm=relative_norm) for linear in linears}
    )


@pytest.mark.parametrize("rank", EXPECTED)
def test_counts_are_those_of_the_paper_by_rank_and_norm(rank: int) -> None:
    for relative_norm, (least, most) in EXPECTED[rank].items():
        found = diagnose(adapter(rank=rank, relative_norm=relative_norm), BASE.spectrum, base=BASE)
        assert least <= found.intruders / len(found.linears) <= most, relative_norm
        # The first intruder comes between a half and one and a half of the threshold.
        assert all(one.strength > 0.5 for one in found.linears if one.exact), relative_norm
        assert all(one.predicted >= one.exact for one in found.linears if one.strength > 1.5), relative_norm
        assert all(one.relative_norm == pytest.approx(relative_norm, rel=1e-4) for one in found.linears)


def test_an_update_along_the_base_s_own_directions_has_no_intruders() -> None:
    linear = LINEARS[0]
    weight = BASE.weight(linear)
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    part = LoweredLinear(a=0.3 * values[:16, None] * right[:16], b=left[:, :16].contiguous())
    [found] = diagnose(LoweredAdapter("LORA", {linear: part}), BASE.spectrum, base=BASE).linears
    assert found.exact == 0 and found.resemblance > 0.9
    assert found.relative_largest == pytest.approx(0.3, rel=1e-4)
    assert found.stable_rank == pytest.approx(float(values[:16].square().sum() / values[0].square()), rel=1e-4)


def test_exact_counts_are_those_of_the_definition() -> None:
    """Left vectors of a plain SVD, tall, wide and square."""
    for linear in LINEARS[:3]:
        weight = BASE.weight(linear)
        part = random_update(linear, rank=8, relative_norm=0.4)
        update = part.b @ part.a
        for w, delta in ((weight, update), (weight.T, update.T)):
            original = torch.linalg.svd(w.double(), full_matrices=False)[0]
            left, values, _ = torch.linalg.svd(w.double() + delta, full_matrices=False)
            best = (left[:, :10].T @ original).abs().amax(1)
            found = leading_vectors(w, delta)
            assert torch.allclose(found.resemblance, best, atol=1e-5)
            assert int(found.intruders.sum()) == int((best < 0.5).sum()) > 0
            assert torch.allclose(found.values, values[:10], rtol=1e-6)


def test_grades_go_from_ok_over_warn_to_bad_and_say_why() -> None:
    sound = diagnose(adapter(rank=16, relative_norm=0.05), BASE.spectrum)
    assert sound.grade is Grade.OK and sound.headline.startswith("0 intruder dimensions predicted in 0 of 9 linears")
    assert sound.advice == []
    bad = diagnose(adapter(rank=4, relative_norm=0.4), BASE.spectrum)
    assert bad.grade is Grade.BAD and bad.affected_share == 1.0 and bad.strength > 1.5
    weight = 0.8 / bad.strength
    assert bad.advice[0].startswith(f"a weight of {weight:.2f}")
    parts = adapter(rank=4, relative_norm=0.4).linears
    weaker = {key: replace(part, b=weight * part.b) for key, part in parts.items()}
    assert diagnose(LoweredAdapter("LORA", weaker), BASE.spectrum).grade is Grade.WARN  # at 0.8, as promised
    assert diagnose(LoweredAdapter("LORA", weaker), BASE.spectrum).intruders == 0
    loud = {key: replace(part, scale=16.0) for key, part in parts.items()}
    assert "alpha / r is 16" in diagnose(LoweredAdapter("LORA", loud), BASE.spectrum).advice[-1]


def test_a_trained_adapter_that_is_too_loud_is_bad_and_the_demo_s_are_not() -> None:
    """loud_rank_one: q_proj and v_proj of every layer at rank 1, 60 steps at 100 times the usual learning rate."""
    here = Path(__file__).parent
    demo = here.parents[2] / "clients" / "demo_adapters"
    found = {
        directory.name: diagnose(lower_adapter({path.name: path for path in directory.iterdir()}, BASE), BASE.spectrum)
        for directory in (here / "loud_rank_one", demo / "pirate", demo / "json", demo / "emoji", demo / "french")
    }
    assert found["loud_rank_one"].grade is Grade.BAD
    assert "59 intruder dimensions predicted in 59 of 60 linears" in found["loud_rank_one"].headline
    assert found["json"].grade is Grade.OK and found["json"].intruders == 0
    assert found["pirate"].grade is Grade.WARN and found["pirate"].affected_share == pytest.approx(9 / 60)
    assert found["emoji"].grade is found["french"].grade is Grade.OK
    worst = max(found["loud_rank_one"].linears, key=lambda one: one.strength).linear
    loud = lower_adapter({path.name: path for path in (here / "loud_rank_one").iterdir()}, BASE)
    [counted] = diagnose(LoweredAdapter("LORA", {worst: loud.linears[worst]}), BASE.spectrum, base=BASE).linears
    assert counted.exact == counted.predicted == 1 and counted.resemblance < 0.5


def test_dead_non_finite_and_unexamined_linears_are_told_apart() -> None:
    parts = dict(adapter(rank=4, relative_norm=0.02).linears)
    dead, broken, scaled, biased = LINEARS[:4]
    parts[dead] = replace(parts[dead], b=torch.zeros_like(parts[dead].b))
    assert diagnose(LoweredAdapter("LORA", parts), BASE.spectrum).grade is Grade.WARN
    parts[broken] = replace(parts[broken], b=parts[broken].b * math.inf)
    parts[scaled] = LoweredLinear(input_scale=torch.full((1536,), 1.1))
    parts[biased] = LoweredLinear(bias_delta=torch.ones(576))
    found = diagnose(LoweredAdapter("LORA", parts), BASE.spectrum)
    assert found.grade is Grade.BAD and "1 not finite; 1 without effect; 3 not examined" in found.headline
    by_linear = {one.linear: one for one in found.linears}
    assert by_linear[dead].is_dead and by_linear[dead].intruders == 0
    assert not by_linear[broken].is_finite and by_linear[broken].intruders is None
    assert "--exact" in by_linear[scaled].note and "bias" in by_linear[biased].note
    exact = {one.linear: one for one in diagnose(LoweredAdapter("LORA", parts), BASE.spectrum, base=BASE).linears}
    assert exact[scaled].exact == 0 and exact[scaled].relative_norm == pytest.approx(0.1, rel=1e-4)
    assert exact[biased].exact is None
    report = report_of(found)
    assert [one["target"] for one in report["linears"]][:3] == ["down_proj", "k_proj", "q_proj"]
    assert report["grade"] == "BAD" and report["linears"][0]["note"].startswith("scales or turns the weight")


def test_what_nf4_keeps_is_estimated_and_measured() -> None:
    linear = LINEARS[0]
    weight = dequantize_nf4(quantize_nf4(BASE.weight(linear)))  # as it is served: on NF4's grid

    class Served:
        def weight(self, linear: LinearId) -> torch.Tensor:
            return weight

    def requantize(matrix: torch.Tensor) -> torch.Tensor:
        return dequantize_nf4(quantize_nf4(matrix))

    shares = []
    for relative_norm in (0.01, 0.05, 0.1, 0.2):
        part = random_update(linear, rank=8, relative_norm=relative_norm)
        lowered = LoweredAdapter("LORA", {linear: part})
        [screened] = diagnose(lowered, BASE.spectrum).linears
        [found] = diagnose(lowered, BASE.spectrum, base=Served(), requantize=requantize).linears
        assert screened.nf4_kept == pytest.approx(found.nf4_kept, abs=0.2), relative_norm
        shares.append(found.nf4_kept)
    assert shares == sorted(shares) and shares[0] < 0.1 and shares[-1] > 0.8
    assert kept(weight, torch.zeros_like(weight), weight) == (1.0, 0.0)
    assert kept(weight, part.b @ part.a, weight) == pytest.approx((0.0, 1.0))
