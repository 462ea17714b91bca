"""Dense linears: prepacked or plain, against the definition in float64."""

import pytest
import torch

from hotshoe.kernels import ops, reference
from hotshoe.kernels.cpu import dense_linear


@pytest.mark.parametrize("rows", [1, 7, 40])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_the_prepacked_kernel_equals_the_reference(rows: int, dtype: torch.dtype, tolerance: float) -> None:
    weight = torch.randn(70, 50) * 0.1
    x = torch.randn(rows, 50)
    y = ops.linear(x, dense_linear.pack(weight, dtype))
    expected = reference.dense_linear(x.double(), weight)
    assert y.dtype == x.dtype
    assert (y.double() - expected).norm() / expected.norm() < tolerance


def test_a_plain_weight_multiplies_in_its_own_dtype() -> None:
    weight = torch.randn(70, 50)
    x = torch.randn(3, 50)
    torch.testing.assert_close(ops.linear(x, weight), x @ weight.T)
    assert ops.linear(x, weight.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours(dtype: torch.dtype) -> None:
    weight = dense_linear.pack(torch.randn(70, 50), dtype)
    x = torch.randn(9, 50)
    others = torch.full((9, 50), float("nan"))
    others[4] = x[4]
    assert torch.equal(ops.linear(others, weight)[4], ops.linear(x, weight)[4])


def test_without_the_private_operators_a_weight_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    weight = dense_linear.pack(torch.randn(8, 4), torch.float32)
    assert isinstance(weight, torch.Tensor)
    assert ops.linear(torch.randn(2, 4), weight).shape == (2, 8)
