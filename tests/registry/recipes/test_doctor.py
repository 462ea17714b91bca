"""The doctor finds what was put into synthetic adapters of real weights, and says nothing of sound ones."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from hotshoe.kernels.reference import dequantize_nf4
from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.recipes.doctor import Grade, LinearDiagnosis, diagnose, report_of, worst
from hotshoe.registry.recipes.factors import Factors, inner
from hotshoe.registry.recipes.requantized import kept
from hotshoe.registry.recipes.spectrum import Spectrum, leading_vectors, left_vectors, weight_spectrum
from hotshoe.server.model.families import spec_from_config
from hotshoe.server.model.gguf_file import GgufFile
from hotshoe.server.model.loader import _packaged_file
from hotshoe.server.model.quantize import quantize_nf4

# The attention's square and short weights and the feed-forward's wide ones, of an early, a middle and a late layer.
MODULES = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj")
LINEARS = [LinearId(layer, module.split(".")[1]) for layer in (3, 15, 27) for module in MODULES]
# The mean number of intruder dimensions a linear, by rank and ‖Δ‖ / ‖W‖, of updates in random directions of which each
# is weaker than the one before, the last a fifth of the first. Measured by others, of 12 linears of these weights.
NORMS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
TABLE = {
    1: (0.0, 0.0, 0.1, 0.6, 0.9, 1.0),
    4: (0.0, 0.0, 0.0, 0.6, 2.1, 3.2),
    16: (0.0, 0.0, 0.0, 0.0, 2.9, 7.3),
    64: (0.0, 0.0, 0.0, 0.0, 0.8, 5.8),
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
    return with_norm(linear, a, b, relative_norm)


def with_norm(linear: LinearId, a: torch.Tensor, b: torch.Tensor, relative_norm: float) -> LoweredLinear:
    """B A, scaled to this share of ‖W‖."""
    factor = relative_norm * BASE.spectrum(linear).norm / math.sqrt(inner(Factors(a, b), Factors(a, b)))
    return LoweredLinear(a=a, b=factor * b, scale=2.0)


def adapter(*, rank: int, relative_norm: float, linears: list[LinearId] = LINEARS) -> LoweredAdapter:
    return LoweredAdapter(
        "LORA", {linear: random_update(linear, rank=rank, relative_norm=relative_norm) for linear in linears}
    )


class Cell(NamedTuple):
    """One update, as the screen sees it, and its intruder dimensions."""

    screened: LinearDiagnosis
    exact: int


@pytest.fixture(scope="module")
def table() -> dict[tuple[int, float], list[Cell]]:
    """The experiment of `TABLE`: 288 updates, one of each linear for every rank and norm."""
    generator = torch.Generator().manual_seed(1)
    found: dict[tuple[int, float], list[Cell]] = {}
    for linear in LINEARS:
        weight = BASE.weight(linear)
        original = left_vectors(weight)
        for rank in TABLE:
            strengths = torch.linspace(1, 0.2, rank) if rank > 1 else torch.ones(1)
            for relative_norm in NORMS:
                b = torch.randn(weight.shape[0], rank, generator=generator) * strengths
                a = torch.randn(rank, weight.shape[1], generator=generator)
                part = with_norm(linear, a, b, relative_norm)
                [screened] = diagnose(LoweredAdapter("LORA", {linear: part}), BASE.spectrum).linears
                leading = leading_vectors(weight, part.b @ part.a, original=original)
                found.setdefault((rank, relative_norm), []).append(Cell(screened, int(leading.intruders.sum())))
    return found


def test_counts_are_those_of_the_table_by_rank_and_norm(table: dict[tuple[int, float], list[Cell]]) -> None:
    """To two intruders more or less in all 12 linears: the random directions are not those of the table's."""
    for rank, means in TABLE.items():
        for relative_norm, mean in zip(NORMS, means, strict=True):
            cells = table[rank, relative_norm]
            assert sum(cell.exact for cell in cells) / 12 == pytest.approx(mean, abs=2.5 / 12), (rank, relative_norm)
            assert all(cell.screened.relative_norm == pytest.approx(relative_norm, rel=1e-4) for cell in cells)


def test_the_screen_misses_no_intruder_and_suspects_one_sound_update_in_seven(
    table: dict[tuple[int, float], list[Cell]],
) -> None:
    cells = [cell for cells in table.values() for cell in cells]
    confusion = Counter((bool(cell.screened.predicted), bool(cell.exact)) for cell in cells)
    assert len(cells) == 288 and confusion[True, True] > 90
    assert confusion[False, True] == 0 and confusion[True, False] <= 27
    assert all((cell.screened.strength > 1) == bool(cell.screened.predicted) for cell in cells)


@pytest.mark.parametrize("linear", [LinearId(29, "v_proj"), LinearId(0, "up_proj")], ids=str)
def test_directions_of_equal_strength_count_together(linear: LinearId) -> None:
    """The strongest alone is below the threshold, and yet there are intruders."""
    out_features, in_features = BASE.weight(linear).shape
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.linalg.qr(torch.randn(size, 64, generator=generator)).Q for size in (in_features, out_features))
    part = with_norm(linear, a.T.contiguous(), b, 0.2)
    [found] = diagnose(LoweredAdapter("LORA", {linear: part}), BASE.spectrum, base=BASE).linears
    spectrum = BASE.spectrum(linear)
    assert found.relative_largest * spectrum.largest < 0.9 * spectrum.threshold
    assert found.exact >= 1 and found.predicted == 1 and found.strength > 1


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
    assert sound.grade is Grade.OK and sound.headline.startswith("0 intruder dimensions predicted in 0 of 12 linears")
    assert sound.advice == []
    bad = diagnose(adapter(rank=4, relative_norm=0.4), BASE.spectrum)
    assert bad.grade is Grade.BAD and bad.affected_share == 1.0 and bad.strength > 1.5
    weight = 0.8 / bad.strength
    assert bad.advice[0].startswith(f"a weight of {weight:.2f}")
    parts = adapter(rank=4, relative_norm=0.4).linears
    weaker = {key: replace(part, b=1.001 * weight * part.b) for key, part in parts.items()}
    assert diagnose(LoweredAdapter("LORA", weaker), BASE.spectrum).grade is Grade.WARN  # at 0.8, as promised
    assert diagnose(LoweredAdapter("LORA", weaker), BASE.spectrum).intruders == 0
    loud = {key: replace(part, scale=16.0) for key, part in parts.items()}
    assert "alpha / r is 16" in diagnose(LoweredAdapter("LORA", loud), BASE.spectrum).advice[-1]


def test_of_several_tasks_the_worst_is_told() -> None:
    sound, bad = (diagnose(adapter(rank=4, relative_norm=norm), BASE.spectrum) for norm in (0.02, 0.4))
    worse = diagnose(adapter(rank=16, relative_norm=0.4), BASE.spectrum)
    tasks = [replace(one, task=task) for task, one in enumerate((sound, bad, worse, sound))]
    found = worst(tasks)
    assert worse.intruders > bad.intruders > 0 and found is tasks[2]
    assert found.headline == f"task 2, the worst: {worse.headline}" and report_of(found)["task"] == 2
    assert worst([sound]) is sound and "task" not in report_of(sound)


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
    assert found["emoji"].grade is Grade.UNKNOWN and found["french"].grade is Grade.OK  # scales, and a soft prompt
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
    parts[scaled] = LoweredLinear(input_scale=torch.full((576,), 1.1))
    parts[biased] = LoweredLinear(bias_delta=torch.ones(576))
    found = diagnose(LoweredAdapter("LORA", parts), BASE.spectrum)
    assert found.grade is Grade.BAD
    assert "1 not finite; 1 without effect; 2 not examined; 1 without a low-rank part" in found.headline
    assert found.advice == ["doctor --exact examines what scales or turns weights"]
    by_linear = {one.linear: one for one in found.linears}
    assert by_linear[dead].is_dead and by_linear[dead].intruders == 0
    assert not by_linear[broken].is_finite and by_linear[broken].intruders is None
    assert "--exact" in by_linear[scaled].note
    assert "bias only" in by_linear[biased].note and by_linear[biased].intruders == 0
    exact = {one.linear: one for one in diagnose(LoweredAdapter("LORA", parts), BASE.spectrum, base=BASE).linears}
    assert exact[scaled].exact == 0 and exact[scaled].relative_norm == pytest.approx(0.1, rel=1e-4)
    assert exact[biased].exact is None
    report = report_of(found)
    assert [one["target"] for one in report["linears"]][:3] == ["down_proj", "o_proj", "q_proj"]
    assert report["grade"] == "BAD" and report["linears"][1]["note"].startswith("scales or turns the weight")


def test_the_low_rank_part_of_a_scaled_weight_is_screened_and_all_of_it_counted() -> None:
    """As a DoRA is: the screen knows what the scales leave out, and says so."""
    linear, out_features = LINEARS[0], 576
    scale = 1 + 0.2 * torch.randn(out_features, generator=torch.Generator().manual_seed(2))
    part = replace(random_update(linear, rank=4, relative_norm=0.4), output_scale=scale)
    [plain] = diagnose(LoweredAdapter("LORA", {linear: replace(part, output_scale=None)}), BASE.spectrum).linears
    [screened] = diagnose(found := LoweredAdapter("LORA", {linear: part}), BASE.spectrum).linears
    assert screened.predicted == plain.predicted > 0 and screened.strength == plain.strength
    assert screened.note.startswith("its low-rank part")
    [counted] = diagnose(found, BASE.spectrum, base=BASE).linears
    weight = BASE.weight(linear).double()
    update = scale[:, None] * weight - weight + part.b @ part.a
    original = torch.linalg.svd(weight, full_matrices=False)[0]
    left = torch.linalg.svd(weight + update, full_matrices=False)[0][:, :10]
    assert counted.exact == int(((left.T @ original).abs().amax(1) < 0.5).sum()) > 0
    assert counted.relative_norm == pytest.approx(float(update.norm() / weight.norm()), rel=1e-4)
    assert counted.note == ""


def test_an_adapter_of_which_nothing_could_be_examined_has_no_grade() -> None:
    scaled = {linear: LoweredLinear(output_scale=torch.full((576,), 1.1)) for linear in (LINEARS[0], LINEARS[2])}
    screened = diagnose(LoweredAdapter("IA3", scaled), BASE.spectrum)
    assert screened.grade is Grade.UNKNOWN and screened.headline == "2 not examined"
    counted = diagnose(LoweredAdapter("IA3", scaled), BASE.spectrum, base=BASE)
    assert counted.grade is Grade.OK and "without a low-rank part, which are not graded" in counted.headline
    assert diagnose(LoweredAdapter("PREFIX_TUNING"), BASE.spectrum).grade is Grade.OK
    biased = LoweredLinear(a=torch.zeros(1, 576), b=torch.zeros(576, 1), bias_delta=torch.ones(576))
    [found] = diagnose(LoweredAdapter("LORA", {LINEARS[0]: biased}), BASE.spectrum).linears
    assert not found.is_dead and found.note == "changes the bias only"


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
