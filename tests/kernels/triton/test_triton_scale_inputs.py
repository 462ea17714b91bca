"""Inputs as the rows' updates scale them, in Triton."""

import dataclasses

import pytest
import torch

from hotshoe.kernels.kernel_task import Draw, Inputs
from hotshoe.kernels.kernel_tasks import TASKS
from hotshoe.kernels.kernel_tasks import scale_inputs as expected
from hotshoe.kernels.triton.scale_inputs import scale_inputs


def inputs(device: torch.device) -> Inputs:
    return TASKS["scale_inputs"].inputs(Draw(torch.Generator().manual_seed(3), device, torch.float32, True))


@pytest.mark.parametrize("even_first", [False, True])
@pytest.mark.parametrize("targets", [1, 2])
def test_each_row_is_scaled_by_its_own_stack(targets: int, even_first: bool, device: torch.device) -> None:
    given = inputs(device) | {"targets": targets}
    (scaled,) = expected(given)
    if even_first:
        x = given["x"]
        given["x"] = torch.cat((x[:, ::2], x[:, 1::2]), dim=1)
        scaled = torch.cat((scaled[..., ::2], scaled[..., 1::2]), dim=2)
    torch.testing.assert_close(scale_inputs(**given, even_first=even_first), scaled)


def test_a_row_without_scales_keeps_every_bit_whatever_the_tables_hold(device: torch.device) -> None:
    given = inputs(device)
    given["vectors"] = dataclasses.replace(given["vectors"], inputs=torch.full_like(given["vectors"].inputs, torch.nan))
    scaled = scale_inputs(**given)
    assert torch.equal(scaled[0, 0], given["x"][0])  # its stack is empty
    assert torch.equal(scaled[0, 3], given["x"][3])
    assert scaled[0, 2].isnan().all()


def test_what_does_not_fit_is_refused(device: torch.device) -> None:
    given = inputs(device)
    with pytest.raises(ValueError, match="for 3 targets"):
        scale_inputs(**given | {"targets": 3})
    with pytest.raises(ValueError, match="planned for 5 rows"):
        scale_inputs(**given | {"x": given["x"][:4]})
