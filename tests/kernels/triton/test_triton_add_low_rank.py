"""Segmented low-rank updates, in Triton."""

import pytest
import torch

from hotshoe.kernels.kernel_task import Draw, Inputs
from hotshoe.kernels.kernel_tasks import TASKS, low_rank_expected
from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankSegment, LowRankTerm
from hotshoe.kernels.row_tiles import RowTiles
from hotshoe.kernels.site_updates import plan_updates
from hotshoe.kernels.triton.add_low_rank import add_low_rank, finish_linear

TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 0.4}
TALL = LowRankTerm(2, (40, 17, 16), weight=-2.0)
SMALL = LowRankTerm(1, (3, 0, 5), weight=0.5)
TRAFFIC = {
    "decode": [LowRankSegment(row, row + 1, (term,)) for row, term in enumerate((TALL, SMALL, TALL, SMALL))],
    "prompt": [LowRankSegment(0, 37, (TALL,))],
    "gaps": [LowRankSegment(2, 3, (SMALL,)), LowRankSegment(5, 6, ()), LowRankSegment(9, 30, (SMALL, TALL))],
    "base_only": [LowRankSegment(0, 4, ())],
    "nothing": [],
}


def inputs(device: torch.device, dtype: torch.dtype = torch.float32) -> Inputs:
    drawn = TASKS["add_low_rank"].inputs(Draw(torch.Generator().manual_seed(2), device, dtype, True))
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, drawn["x"].shape[1], generator=generator).to(device, dtype)
    y = torch.randn(40, drawn["y"].shape[1], generator=generator).to(device, dtype)
    return drawn | {"x": x, "y": y}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("traffic", TRAFFIC)
def test_it_equals_the_formula(traffic: str, dtype: torch.dtype, device: torch.device) -> None:
    given = inputs(device, dtype) | {"segments": TRAFFIC[traffic]}
    (expected,) = low_rank_expected(given)
    add_low_rank(**given)
    torch.testing.assert_close(given["y"].double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_ranks_that_no_term_has_are_not_read(device: torch.device) -> None:
    given = inputs(device) | {"segments": [LowRankSegment(0, 3, (SMALL,))]}
    (expected,) = low_rank_expected(given)
    table, columns = given["table"], torch.arange(3 * UNIT_RANK)
    unused = ~torch.isin(columns, torch.tensor([0, 1, 2, 32, 33, 34, 35, 36]))
    table.a[1][:, unused] = float("nan")
    table.a[2:] = table.a[0] = float("nan")
    table.b[:UNIT_RANK] = table.b[UNIT_RANK + 5 :] = float("nan")
    table.b[UNIT_RANK + 3 :, :48] = float("nan")
    add_low_rank(**given)
    torch.testing.assert_close(given["y"].double(), expected, rtol=1e-4, atol=1e-4)


def test_rows_do_not_depend_on_their_neighbours(device: torch.device) -> None:
    given = inputs(device)
    alone, among = given["y"].clone(), given["y"].clone()
    x = given["x"].clone()
    x[:7] = x[8:] = float("nan")
    add_low_rank(among, given["x"], given["table"], [LowRankSegment(0, 7, (SMALL,)), LowRankSegment(7, 8, (TALL,))])
    add_low_rank(alone, x, given["table"], [LowRankSegment(7, 8, (TALL,))])
    assert torch.equal(alone[7], among[7])
    assert torch.equal(alone[8:], given["y"][8:])


def test_tables_longer_than_their_counts_change_nothing(device: torch.device) -> None:
    given = inputs(device)
    updates, tiles = plan_updates(given["table"], TRAFFIC["gaps"], num_rows=40)
    padded = RowTiles(
        tiles.count,
        torch.cat((tiles.entries, tiles.entries.new_full((5, 3), 1 << 20))),
        torch.cat((tiles.weights, tiles.weights.new_full((5,), float("nan")))),
        tiles.row_entries,
    )
    exact, y = given["y"].clone(), given["y"].clone()
    finish_linear(exact, given["x"], None, updates, tiles)
    finish_linear(y, given["x"], None, updates, padded)
    assert torch.equal(y, exact)
    assert not torch.equal(y, given["y"])


def test_shapes_that_disagree_are_refused(device: torch.device) -> None:
    given = inputs(device)
    with pytest.raises(ValueError, match="x: expected"):
        add_low_rank(given["y"], given["x"][:, :5], given["table"], ())
    with pytest.raises(ValueError, match="y: expected"):
        add_low_rank(given["y"][:3], given["x"], given["table"], ())
    with pytest.raises(ValueError, match="a term has 2 ranks, not 3"):
        plan_updates(given["table"], [LowRankSegment(0, 1, (LowRankTerm(0, (1, 1)),))], num_rows=1)
    updates, tiles = plan_updates(given["table"], TRAFFIC["decode"], num_rows=4)
    with pytest.raises(ValueError, match="planned for 4 rows"):
        finish_linear(given["y"], given["x"], None, updates, tiles)
