"""The low-rank update: every way to compute it against its formula in float64, and what a row may depend on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hotshoe.kernels.low_rank import (
    UNIT_RANK,
    LowRankKind,
    LowRankSegment,
    LowRankTable,
    LowRankTerm,
    add_low_rank,
    plan_low_rank,
)

IN_FEATURES, WIDTHS = 40, (48, 16, 16)
UNITS = 24
KINDS: tuple[LowRankKind, ...] = ("gathered", "segmented", "reference")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1.5e-2}
DTYPES = tuple(TOLERANCE)


def random_table(
    dtype: torch.dtype = torch.float32, *, seed: int = 0, widths: tuple[int, ...] = WIDTHS
) -> LowRankTable:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(UNITS, IN_FEATURES, len(widths) * UNIT_RANK, generator=generator)
    b = torch.randn(UNITS * UNIT_RANK, sum(widths), generator=generator)
    return LowRankTable(a.to(dtype), b.to(dtype), widths)


def rows_of(terms: Sequence[Sequence[LowRankTerm]]) -> list[LowRankSegment]:
    return [LowRankSegment(row, row + 1, tuple(stack)) for row, stack in enumerate(terms)]


def apply(y: Tensor, x: Tensor, table: LowRankTable, segments: Sequence[LowRankSegment], kind: LowRankKind) -> Tensor:
    y = y.clone()
    plan = plan_low_rank(segments, in_features=IN_FEATURES, widths=table.widths, kind=kind)
    add_low_rank(y, x, table, plan)
    return y


def expected(y: Tensor, x: Tensor, table: LowRankTable, segments: Sequence[LowRankSegment]) -> Tensor:
    """The formula, in float64."""
    result = y.double()
    columns = torch.tensor(table.widths).cumsum(0).tolist()
    for segment in segments:
        for term in segment.terms:
            for target, rank in enumerate(term.ranks):
                for i in range(rank):
                    unit, column = term.unit + i // UNIT_RANK, target * UNIT_RANK + i % UNIT_RANK
                    shrunk = x[segment.start : segment.end].double() @ table.a[unit, :, column].double()
                    out = slice(columns[target] - table.widths[target], columns[target])
                    row = table.b[term.unit * UNIT_RANK + i, out].double()
                    result[segment.start : segment.end, out] += term.weight * shrunk[:, None] * row
    return result


LOW = LowRankTerm(0, (8, 8, 8))
FULL = LowRankTerm(1, (16, 16, 16))
TALL = LowRankTerm(2, (64, 33, 17))
ONE = LowRankTerm(6, (1, 0, 0), weight=-0.5)
SOME = LowRankTerm(7, (0, 4, 20), weight=2.0)
TRAFFIC: Mapping[str, Sequence[Sequence[LowRankTerm]]] = {
    "identical": [[FULL]] * 6,
    "distinct": [[LOW], [FULL], [TALL], [ONE], [SOME]],
    "one_of_many": [[], [], [TALL], [], []],
    "base_only": [[], []],
    "stacks": [[FULL, SOME], [], [TALL, ONE, LOW], [SOME, FULL]],
    "single": [[LOW]],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("traffic", TRAFFIC)
def test_each_row_gets_its_own_terms(traffic: str, kind: LowRankKind, dtype: torch.dtype) -> None:
    segments, table = rows_of(TRAFFIC[traffic]), random_table(dtype)
    x, y = torch.randn(len(segments), IN_FEATURES), torch.randn(len(segments), sum(WIDTHS))
    want = expected(y, x, table, segments)
    error = (apply(y, x, table, segments, kind) - want).norm() / want.norm()
    assert error < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ("segmented", "reference"))
def test_segments_of_many_rows_get_their_terms(kind: LowRankKind, dtype: torch.dtype) -> None:
    segments = [
        LowRankSegment(0, 1, (TALL,)),
        LowRankSegment(2, 9, (FULL, SOME)),
        LowRankSegment(9, 12, ()),
        LowRankSegment(12, 30, (TALL, ONE)),
    ]
    table, x, y = random_table(dtype), torch.randn(32, IN_FEATURES), torch.randn(32, sum(WIDTHS))
    got, want = apply(y, x, table, segments, kind), expected(y, x, table, segments)
    assert (got - want).norm() / want.norm() < TOLERANCE[dtype]
    for untouched in (slice(1, 2), slice(9, 12), slice(30, 32)):
        assert torch.equal(got[untouched], y[untouched])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("y_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
def test_inputs_and_outputs_may_be_float32_or_bfloat16(
    x_dtype: torch.dtype, y_dtype: torch.dtype, kind: LowRankKind
) -> None:
    segments, table = rows_of(TRAFFIC["distinct"]), random_table(torch.bfloat16)
    x, y = torch.randn(5, IN_FEATURES, dtype=x_dtype), torch.zeros(5, sum(WIDTHS), dtype=y_dtype)
    got = apply(y, x, table, segments, kind)
    want = expected(y, x, table, segments)
    assert got.dtype == y_dtype
    assert (got - want).norm() / want.norm() < TOLERANCE[torch.bfloat16]


def poison(table: LowRankTable, *terms: LowRankTerm) -> LowRankTable:
    """The same table with NaN and infinity in every number of those terms' units."""
    a, b = table.a.clone(), table.b.clone()
    for term in terms:
        a[term.unit : term.unit + term.num_units] = torch.nan
        b[term.unit * UNIT_RANK : (term.unit + term.num_units) * UNIT_RANK] = torch.inf
    return LowRankTable(a, b, table.widths)


NEIGHBOURS: Mapping[str, Sequence[Sequence[LowRankTerm]]] = {
    "base_only": [[], [], [], [], []],
    "same_as_own": [[SOME, LOW]] * 5,
    "small": [[ONE], [ONE], [LOW], [ONE], [ONE]],
    "large": [[TALL], [TALL, FULL], [LowRankTerm(10, (160, 160, 160))], [TALL], [FULL]],
    "weighted": [[SOME], [ONE], [FULL, SOME], [ONE], [SOME]],
}


@pytest.mark.parametrize("poisoned", (False, True))
@pytest.mark.parametrize("neighbours", NEIGHBOURS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    kind: LowRankKind, dtype: torch.dtype, neighbours: str, poisoned: bool
) -> None:
    own = [FULL, LowRankTerm(20, (33, 33, 33), weight=0.7)]
    table, generator = random_table(dtype), torch.Generator().manual_seed(1)
    x = torch.randn(6, IN_FEATURES, generator=generator)
    y = torch.randn(6, sum(WIDTHS), generator=generator)
    alone = apply(y, x, table, rows_of([[], [], own, [], [], []]), kind)[2]
    others = [[term for term in stack if term != FULL] for stack in NEIGHBOURS[neighbours]]
    if poisoned:
        table = poison(table, *(term for stack in others for term in stack))
    x[:2], x[3:], y[:2], y[3:] = 1e30, -1e30, 3.0, 4.0
    mixed = apply(y, x, table, rows_of([*others[:2], own, *others[2:]]), kind)
    assert torch.equal(mixed[2], alone)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gathered_rows_bits_do_not_depend_on_how_many_rows_there_are(dtype: torch.dtype) -> None:
    table, x, y = random_table(dtype), torch.randn(64, IN_FEATURES), torch.randn(64, sum(WIDTHS))
    terms = [[LOW], [FULL], [TALL], [SOME]] * 16
    together = apply(y, x, table, rows_of(terms), "gathered")
    for count in (1, 2, 3, 5, 17):
        assert torch.equal(apply(y[:count], x[:count], table, rows_of(terms[:count]), "gathered"), together[:count])


@pytest.mark.parametrize("kind", KINDS)
def test_a_poisoned_adapter_harms_its_own_row_only(kind: LowRankKind) -> None:
    terms = [[LOW], [FULL], [], [TALL, FULL], [LOW]]
    clean = random_table()
    x, y = torch.randn(5, IN_FEATURES), torch.randn(5, sum(WIDTHS))
    healthy = apply(y, x, clean, rows_of(terms), kind)
    harmed = apply(y, x, poison(clean, FULL), rows_of(terms), kind)
    assert not harmed[[1, 3]].isfinite().any()
    assert torch.equal(harmed[[0, 2, 4]], healthy[[0, 2, 4]])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_terms_keep_every_bit(kind: LowRankKind) -> None:
    y = torch.full((4, sum(WIDTHS)), -0.0)
    y[2] = torch.nan
    y[3] = torch.inf
    got = apply(y, torch.randn(4, IN_FEATURES), random_table(), rows_of([[FULL], [], [], []]), kind)
    assert torch.equal(got[1:].view(torch.int32), y[1:].view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_that_nobody_has_may_hold_anything(kind: LowRankKind) -> None:
    table = random_table()
    table.a[0, :, 8:UNIT_RANK] = torch.nan  # of the unit where LOW has 8 ranks
    table.b[8:UNIT_RANK] = torch.nan
    got = apply(torch.zeros(1, sum(WIDTHS)), torch.randn(1, IN_FEATURES), table, rows_of([[LOW]]), kind)
    assert got.isfinite().all()


def test_a_folded_update_is_the_same_from_half_the_lines() -> None:
    table, folded = random_table(), random_table()
    for target, rank in enumerate(LOW.ranks):
        a = table.a_of(LOW.unit, target, rank)
        for half, place in zip(a.chunk(2), folded.folded_of(LOW.unit, target, rank), strict=True):
            place.copy_(half)
    folded.a[LOW.unit, IN_FEATURES // 2 :] = torch.nan
    x, y = torch.randn(3, IN_FEATURES), torch.randn(3, sum(WIDTHS))
    term = replace(LOW, folded=True)
    got = apply(y, x, folded, [LowRankSegment(1, 3, (term, FULL))], "segmented")
    want = expected(y, x, table, [LowRankSegment(1, 3, (LOW, FULL))])
    assert (got - want).norm() / want.norm() < TOLERANCE[torch.float32]
    for kind in ("gathered", "reference"):
        with pytest.raises(ValueError, match="folded"):
            plan_low_rank(rows_of([[term]]), in_features=IN_FEATURES, widths=WIDTHS, kind=kind)


def test_a_plan_serves_every_table_of_its_shape() -> None:
    plan = plan_low_rank(rows_of([[TALL], [LOW]]), in_features=IN_FEATURES, widths=WIDTHS, kind="gathered")
    x = torch.randn(2, IN_FEATURES)
    for seed in (1, 2):
        table, y = random_table(seed=seed), torch.zeros(2, sum(WIDTHS))
        add_low_rank(y, x, table, plan)
        want = expected(torch.zeros(2, sum(WIDTHS)), x, table, rows_of([[TALL], [LOW]]))
        assert (y - want).norm() / want.norm() < TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    ("segments", "kind", "named"),
    [
        ([LowRankSegment(0, 2, (LOW,))], "gathered", "single rows"),
        ([LowRankSegment(0, 0, (LOW,))], "segmented", "ascending rows"),
        ([LowRankSegment(0, 3, (LOW,)), LowRankSegment(2, 4, ())], "segmented", "ascending rows"),
        ([LowRankSegment(0, 1, (LowRankTerm(0, (8,)),))], "reference", "3 ranks"),
        ([LowRankSegment(0, 1, (LowRankTerm(-1, (8, 8, 8)),))], "reference", "a unit"),
    ],
)
def test_wrong_segments_are_refused(segments: list[LowRankSegment], kind: LowRankKind, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        plan_low_rank(segments, in_features=IN_FEATURES, widths=WIDTHS, kind=kind)


@pytest.mark.parametrize(
    ("x_shape", "y_shape", "widths", "named"),
    [
        ((2, IN_FEATURES + 1), (2, 80), WIDTHS, "x: expected"),
        ((1, IN_FEATURES), (1, 80), WIDTHS, "x: expected"),
        ((2, IN_FEATURES), (2, 81), WIDTHS, "y: expected"),
        ((2, IN_FEATURES), (3, 80), WIDTHS, "y: expected"),
        ((2, IN_FEATURES), (2, 80), (40, 40), "plan's shape"),
    ],
)
def test_wrong_shapes_are_refused_and_leave_the_output_alone(
    x_shape: tuple[int, int], y_shape: tuple[int, int], widths: tuple[int, ...], named: str
) -> None:
    plan = plan_low_rank(rows_of([[LOW], [LOW]]), in_features=IN_FEATURES, widths=WIDTHS, kind="segmented")
    y = torch.zeros(y_shape)
    with pytest.raises(ValueError, match=named):
        add_low_rank(y, torch.ones(x_shape), random_table(widths=widths), plan)
    assert not y.any()
