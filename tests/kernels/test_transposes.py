"""Compiled copies of matrices as their transposes: every number as torch would write it, and nothing beside them."""

import numpy as np
import pytest
import torch
from torch import Tensor

transposes = pytest.importorskip("hotshoe.kernels.cpu.transposes", reason="numba is not installed")

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32
SHAPES = [(1, 1), (8, 8), (16, 16), (64, 96), (33, 47), (7, 100), (100, 7), (24, 40), (16, 272), (0, 5), (5, 0)]
EDGES = [0.0, -0.0, 1e-40, -1e-40, 6e-8, 1.00390625, 1.01171875, -1.00390625, 65504.0, 1e-38]


def numbers(columns: int, rows: int, dtype: torch.dtype) -> Tensor:
    """Random ones, and some at which rounding, signs and exponents matter."""
    values = torch.randn(columns, rows + 3)
    for index, value in enumerate(EDGES[: values.numel()]):
        values.view(-1)[index * 7 % values.numel()] = value
    return values.to(dtype)[:, :rows]


def room(rows: int, columns: int, dtype: torch.dtype, *, in_lines: bool) -> tuple[Tensor, int]:
    """Where a transpose goes, and its first column: at the beginning of a cache line in each row, or within one."""
    if not in_lines:
        return torch.full((rows, columns + 5), 7.0, dtype=dtype), 2
    line = transposes.LINE // dtype.itemsize
    width = -(-columns // line) * line + line
    flat = torch.full((rows * width + line,), 7.0, dtype=dtype)
    start = -flat.data_ptr() % transposes.LINE // dtype.itemsize
    return flat[start : start + rows * width].view(rows, width), 0


@pytest.mark.parametrize("in_lines", [False, True])
@pytest.mark.parametrize(("columns", "rows"), SHAPES)
@pytest.mark.parametrize(
    ("source_dtype", "target_dtype", "scale"),
    [
        (BF16, BF16, 1.0),
        (F16, F16, 1.0),
        (F32, F32, 1.0),
        *((source, target, scale) for source in (F16, BF16) for target in (BF16, F32) for scale in (1.0, 1.7, 1 / 3)),
    ],
)
def test_a_transpose_holds_what_torch_would_write_and_leaves_the_rest(
    source_dtype: torch.dtype, target_dtype: torch.dtype, scale: float, columns: int, rows: int, in_lines: bool
) -> None:
    source = numbers(columns, rows, source_dtype)
    target, first = room(rows, columns, target_dtype, in_lines=in_lines)
    wanted = target.clone()
    moved = source.t() if source_dtype is target_dtype and scale == 1 else source.t().float() * scale
    wanted[:, first : first + columns] = moved
    where = target.data_ptr() + first * target.itemsize
    strides = source.stride(0) * source.itemsize, target.stride(0) * target.itemsize
    one = np.array([[0, strides[0], where, strides[1], columns, rows]], np.int64)
    change = transposes.change_of(source_dtype, target_dtype, scaled=scale != 1)
    transposes.transpose_all(change, one, np.array([scale], np.float32), source.data_ptr())
    bits = torch.int32 if target_dtype is F32 else torch.int16
    assert torch.equal(target.view(bits), wanted.view(bits))


def test_zeros_fill_spans_and_nothing_else() -> None:
    memory = torch.ones(12, dtype=torch.int64)
    spans = [(memory[1:].data_ptr(), 3), (memory[8:].data_ptr(), 0), (memory[9:].data_ptr(), 1)]
    transposes.fill_zeros(np.array(spans, np.int64))
    assert memory.tolist() == [1, 0, 0, 0, 1, 1, 1, 1, 1, 0, 1, 1]


def test_what_is_no_list_of_copies_is_refused() -> None:
    none, scales = np.zeros((0, transposes.WIDTH), np.int64), np.zeros(0, np.float32)
    with pytest.raises(ValueError, match="transposes: expected"):
        transposes.transpose_all(0, none[:, 1:], scales, 0)
    with pytest.raises(ValueError, match=r"scales: expected \[0\]"):
        transposes.transpose_all(0, none, np.zeros(1, np.float32), 0)
    with pytest.raises(ValueError, match="spans: expected"):
        transposes.fill_zeros(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match=r"no copies of torch\.float32 as torch\.bfloat16"):
        transposes.change_of(F32, BF16, scaled=False)
