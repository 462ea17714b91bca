"""gelu(gate) ∘ up, in Triton."""

import pytest
import torch

from hotshoe.kernels import reference
from hotshoe.kernels.triton.gelu_tanh_mul import gelu_tanh_mul

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("features", [20, 1100])
def test_it_gates(features: int, dtype: torch.dtype, device: torch.device) -> None:
    gate_up = torch.randn(3, 2 * features, device=device).to(dtype)
    gate_up[:, :4] = torch.tensor([-200.0, -50.0, 50.0, 200.0])
    expected = reference.gelu_tanh_mul(gate_up.double())
    torch.testing.assert_close(gelu_tanh_mul(gate_up).double(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_even_columns_come_first_on_request(device: torch.device) -> None:
    gate_up = torch.randn(2, 80, device=device)
    plain = gelu_tanh_mul(gate_up)
    assert torch.equal(gelu_tanh_mul(gate_up, even_first=True), torch.cat((plain[:, ::2], plain[:, 1::2]), dim=1))


def test_columns_that_do_not_halve_are_refused(device: torch.device) -> None:
    with pytest.raises(ValueError, match="gate_up"):
        gelu_tanh_mul(torch.zeros(2, 7, device=device))
