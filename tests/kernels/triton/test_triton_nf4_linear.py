"""NF4 linears in Triton: against the definition, with nested scales, split columns and the low-rank epilogue."""

import dataclasses

import pytest
import torch
from torch import Tensor

from hotshoe.kernels import reference
from hotshoe.kernels.kernel_task import Draw
from hotshoe.kernels.kernel_tasks import low_rank_expected, random_nf4
from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTable, LowRankTerm
from hotshoe.kernels.site_updates import HAS_BIAS, HAS_OUTPUT, UpdateVectors, plan_updates
from hotshoe.kernels.triton import epilogue
from hotshoe.kernels.triton import nf4_linear as module
from hotshoe.kernels.triton.nf4_linear import nf4_linear, pack
from hotshoe.kernels.triton.precision import interpreted
from hotshoe.server.model.quantize import quantize_nf4

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
IN, WIDTHS = 192, (48, 16, 80)
TERMS = LowRankTerm(0, (16, 16, 16)), LowRankTerm(1, (3, 0, 5), 0.5), LowRankTerm(2, (40, 17, 16), -2.0)


def draw(device: torch.device, seed: int = 0) -> Draw:
    return Draw(torch.Generator().manual_seed(seed), device, torch.float32, True)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("permute", [False] if interpreted() else [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rows", [1, 5, 17, 40])
def test_it_equals_the_reference(rows: int, dtype: torch.dtype, permute: bool, device: torch.device) -> None:
    weight = random_nf4(draw(device), 96, IN)
    x = torch.randn(rows, IN, device=device).to(dtype)
    y = nf4_linear(x, weight, permute=permute)
    assert y.dtype == dtype
    assert relative_error(y, reference.nf4_linear(x.double(), weight)) < TOLERANCE[dtype]


@pytest.mark.parametrize("nested", [True, False])
def test_quantized_weights_side_by_side_equal_each_alone(nested: bool, device: torch.device) -> None:
    parts = [quantize_nf4(torch.randn(rows, IN) * scale) for rows, scale in ((64, 0.1), (70, 2.0), (10, 0.01))]
    if not nested:
        parts = [
            dataclasses.replace(p, absmax=p.scales(), absmax_code=None, nested_absmax=None, offset=0.0) for p in parts
        ]
    x = torch.randn(3, IN, device=device)
    y = nf4_linear(x, pack(parts, device)).split([64, 70, 10], dim=1)
    for part, columns in zip(parts, y, strict=True):
        assert relative_error(columns.cpu(), reference.nf4_linear(x.cpu().double(), part)) < 1e-5


def test_splitting_the_columns_changes_rounding_only(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = pack([random_nf4(draw(device), 96, IN)], device)
    x = torch.randn(3, IN, device=device)
    assert module.num_splits(weight.shape) == 3
    split = nf4_linear(x, weight)
    monkeypatch.setattr(module, "MAX_SPLITS", 1)
    torch.testing.assert_close(nf4_linear(x, weight), split, rtol=1e-4, atol=1e-4)


def test_even_columns_may_come_first(device: torch.device) -> None:
    weight = pack([random_nf4(draw(device), 96, IN)], device)
    x = torch.randn(3, IN, device=device)
    halves = torch.cat((x[:, ::2], x[:, 1::2]), dim=1)
    assert torch.equal(nf4_linear(halves, weight, even_first=True), nf4_linear(x, weight))


def test_a_row_does_not_depend_on_its_neighbours(device: torch.device) -> None:
    weight = pack([random_nf4(draw(device), 96, IN)], device)
    x = torch.randn(7, IN, device=device)
    others = torch.full((7, IN), float("nan"), device=device)
    others[3] = x[3]
    assert torch.equal(nf4_linear(others, weight)[3], nf4_linear(x, weight)[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_how_many_there_are(dtype: torch.dtype, device: torch.device) -> None:
    weight, table = pack([random_nf4(draw(device), sum(WIDTHS), IN)], device), random_table(device, dtype)
    x = torch.randn(70, IN, device=device).to(dtype)

    def run(rows: int) -> Tensor:
        return nf4_linear(x[:rows], weight, None, *plan_updates(table, segments(rows), num_rows=rows))

    assert torch.equal(run(4), run(70)[:4])
    assert torch.equal(run(30), run(70)[:30])


def random_table(device: torch.device, dtype: torch.dtype = torch.float32) -> LowRankTable:
    drawn = draw(device, 5)
    a = drawn.normal(5, IN, len(WIDTHS) * UNIT_RANK, scale=IN**-0.5, dtype=dtype)
    return LowRankTable(a, drawn.normal(5 * UNIT_RANK, sum(WIDTHS), dtype=dtype), WIDTHS)


def segments(rows: int) -> tuple[LowRankSegment, ...]:
    """Rows 0, 2 and 3 are single, 4 … 25 one prompt that crosses tiles, the rest without updates."""
    one, small, tall = TERMS
    lengths = ((0, 1, (one,)), (2, 3, (small, one)), (3, 4, (tall,)), (4, 26, (tall, small)))
    return tuple(LowRankSegment(start, min(end, rows), terms) for start, end, terms in lengths if start < rows)


@pytest.mark.parametrize("max_splits", [1, 8])
@pytest.mark.parametrize("even_first", [False, True])
@pytest.mark.parametrize("rows", [4, 19, 70])
def test_the_epilogue_adds_each_row_its_own_terms(
    rows: int, even_first: bool, max_splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SPLITS", max_splits)
    weight, table = random_nf4(draw(device), sum(WIDTHS), IN), random_table(device)
    x = torch.randn(rows, IN, device=device)
    updates = plan_updates(table, segments(rows), num_rows=rows)
    given = torch.cat((x[:, ::2], x[:, 1::2]), dim=1) if even_first else x
    y = nf4_linear(given, weight, None, *updates, even_first=even_first)
    base = reference.nf4_linear(x.double(), weight)
    (expected,) = low_rank_expected({"y": base, "x": x, "table": table, "segments": segments(rows)})
    assert relative_error(y, expected) < 1e-5
    assert relative_error(y, base) > 1e-2


@pytest.mark.parametrize("max_splits", [1, 8])
def test_the_epilogue_scales_then_adds_the_bias_then_the_updates(
    max_splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SPLITS", max_splits)
    weight, out = random_nf4(draw(device), sum(WIDTHS), IN), sum(WIDTHS)
    updates, tiles = plan_updates(random_table(device), segments(7), num_rows=7)
    drawn = draw(device, 9)
    count = updates.ranks.shape[0]  # one, small, tall, in the order of segments
    vectors = UpdateVectors(
        torch.full((count, 3, IN), float("nan"), device=device),
        drawn.normal(count, out), drawn.normal(count, out), torch.tensor([HAS_OUTPUT, HAS_BIAS, 0], device=device),
    )  # fmt: skip
    vectors.outputs[1:] = vectors.biases[[0, 2]] = float("nan")  # what the flags do not name is not read
    x, bias = torch.randn(7, IN, device=device), drawn.normal(out)
    y = nf4_linear(x, weight, bias, dataclasses.replace(updates, vectors=vectors), tiles)
    base = reference.nf4_linear(x.double(), weight)
    for row in (0, 2):  # whose stacks have `one`, at weight 1
        base[row] *= vectors.outputs[0]
    base += bias
    for row, times in ((2, 0.5), (4, 0.5), (5, 0.5), (6, 0.5)):  # whose stacks have `small`
        base[row] += times * vectors.biases[1]
    given = {"y": base, "x": x, "table": updates.table, "segments": segments(7)}
    assert relative_error(y, *low_rank_expected(given)) < 1e-5


def test_splitting_what_is_shrunk_changes_rounding_only(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = random_nf4(draw(device), sum(WIDTHS), IN), torch.randn(9, IN, device=device)
    updates = plan_updates(random_table(device), segments(9), num_rows=9)
    whole = nf4_linear(x, weight, None, *updates)
    monkeypatch.setattr(epilogue, "SPLIT_COLUMNS", 64)
    assert epilogue.num_splits(IN) == 3
    torch.testing.assert_close(nf4_linear(x, weight, None, *updates), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("max_splits", [1, 8])
def test_the_epilogue_reads_no_other_rows_factors(
    max_splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SPLITS", max_splits)
    weight, table = random_nf4(draw(device), sum(WIDTHS), IN), random_table(device)
    x = torch.randn(8, IN, device=device)
    updates = plan_updates(table, segments(4), num_rows=8)
    clean = nf4_linear(x, weight, None, *updates)
    table.a[2:] = table.b[2 * UNIT_RANK :] = float("nan")  # the tall term's, which row 3 alone has
    y = nf4_linear(x, weight, None, *updates)
    assert y[3].isnan().any()
    kept = [0, 1, 2, 4, 5, 6, 7]
    assert torch.equal(y[kept], clean[kept])


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    weight = random_nf4(draw(device), 96, IN)
    with pytest.raises(ValueError, match="x: expected"):
        nf4_linear(torch.zeros(2, 64, device=device), weight)
    with pytest.raises(ValueError, match="does not fit blocks"):
        pack([quantize_nf4(torch.randn(4, 96))], device)
    with pytest.raises(ValueError, match="differ"):
        pack([weight, dataclasses.replace(weight, quant_map=weight.quant_map * 2)], device)
    wide = random_nf4(draw(device), sum(WIDTHS), IN)
    updates, tiles = plan_updates(random_table(device), (), num_rows=5)
    with pytest.raises(ValueError, match="tiles: planned for 5 rows"):
        nf4_linear(torch.zeros(2, IN, device=device), wide, None, updates, tiles)
    with pytest.raises(ValueError, match="both or neither"):
        nf4_linear(torch.zeros(2, IN, device=device), wide, None, None, tiles)
    with pytest.raises(ValueError, match="bias: expected"):
        nf4_linear(torch.zeros(2, IN, device=device), wide, torch.zeros(3, device=device))
