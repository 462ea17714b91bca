"""What sampling needs of a row of logits, in Triton."""

import pytest
import torch

from hotshoe.kernels.kernel_task import Draw, Inputs
from hotshoe.kernels.kernel_tasks import logit_stats as expected
from hotshoe.kernels.kernel_tasks import logit_stats_inputs
from hotshoe.kernels.triton.logit_stats import logit_stats


def inputs(device: torch.device) -> Inputs:
    return logit_stats_inputs(Draw(torch.Generator().manual_seed(3), device, torch.float32, True))


def test_it_finds_the_likeliest_token_and_what_is_not_finite(device: torch.device) -> None:
    given = inputs(device)
    ids, finite, totals = logit_stats(**given)
    right_ids, right_finite, right_totals = expected(given)
    assert torch.equal(finite, right_finite)
    assert finite.tolist() == [1, 0, 0, 1, 1]
    sound = finite.bool()
    assert torch.equal(ids[sound], right_ids[sound])
    torch.testing.assert_close(totals[sound].double(), right_totals[sound], rtol=1e-5, atol=0.0)


def test_a_row_does_not_depend_on_how_many_there_are(device: torch.device) -> None:
    given = inputs(device)
    alone = logit_stats(given["logits"][3:4], given["temperatures"][3:4])
    assert all(torch.equal(one[0], all_[3]) for one, all_ in zip(alone, logit_stats(**given), strict=True))


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    given = inputs(device)
    with pytest.raises(ValueError, match="logits: expected"):
        logit_stats(given["logits"].half(), given["temperatures"])
    with pytest.raises(ValueError, match="temperatures: expected"):
        logit_stats(given["logits"], given["temperatures"][:2])
