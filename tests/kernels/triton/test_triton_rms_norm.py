"""RMSNorm with the residual, in Triton."""

import pytest
import torch

from hotshoe.kernels import reference
from hotshoe.kernels.triton.rms_norm import rms_norm

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("features", [64, 200, 576])
def test_it_normalizes_the_sum(features: int, dtype: torch.dtype, device: torch.device) -> None:
    x, residual = torch.randn(2, 3, features, device=device).to(dtype)
    weight = torch.randn(features, device=device).to(dtype)
    normed, total = rms_norm(x, residual, weight, 1e-5)
    exact = x.double() + residual.double()
    assert normed.dtype == total.dtype == dtype
    torch.testing.assert_close(total.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    expected = reference.rms_norm(exact, weight.double(), 1e-5)
    torch.testing.assert_close(normed.double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_without_a_residual_the_sum_is_the_input(device: torch.device) -> None:
    x, weight = torch.randn(2, 64, device=device), torch.randn(64, device=device)
    normed, total = rms_norm(x, None, weight, 1e-5)
    assert total is x
    torch.testing.assert_close(normed, reference.rms_norm(x, weight, 1e-5))


def test_even_columns_come_first_on_request(device: torch.device) -> None:
    x, weight = torch.randn(2, 64, device=device), torch.randn(64, device=device)
    plain, halves = (rms_norm(x, None, weight, 1e-5, even_first=even_first)[0] for even_first in (False, True))
    assert torch.equal(halves, torch.cat((plain[:, ::2], plain[:, 1::2]), dim=1))


def test_a_weight_of_another_width_is_refused(device: torch.device) -> None:
    x = torch.zeros(2, 64, device=device)
    with pytest.raises(ValueError, match="weight, residual"):
        rms_norm(x, None, torch.zeros(32, device=device), 1e-5)
    with pytest.raises(ValueError, match="contiguous"):
        rms_norm(torch.zeros(64, 2, device=device).T, None, torch.zeros(64, device=device), 1e-5)
