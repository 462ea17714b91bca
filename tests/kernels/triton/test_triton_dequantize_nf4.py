"""NF4 weights decoded into memory, in Triton."""

import pytest
import torch

from hotshoe.kernels import reference
from hotshoe.kernels.kernel_task import Draw
from hotshoe.kernels.kernel_tasks import random_nf4
from hotshoe.kernels.triton.dequantize_nf4 import dequantize_nf4
from hotshoe.kernels.triton.nf4_linear import pack


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])  # the interpreter cuts bfloat16 off
@pytest.mark.parametrize("in_features", [64, 192, 576])
def test_parts_side_by_side_equal_the_reference(in_features: int, dtype: torch.dtype, device: torch.device) -> None:
    draw = Draw(torch.Generator().manual_seed(0), device, torch.float32, True)
    parts = [random_nf4(draw, 5, in_features), random_nf4(draw, 3, in_features)]
    expected = torch.cat([reference.dequantize_nf4(part) for part in parts]).to(dtype)
    assert torch.equal(dequantize_nf4(pack(parts, device), dtype), expected)
