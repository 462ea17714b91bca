"""NF4 linears: each kernel against the definition in float64, and the definition against bitsandbytes."""

import pytest
import torch
from torch import Tensor

from hotshoe.kernels import bnb_linear, ops, reference
from hotshoe.kernels.cpu import dense_linear, nf4_linear
from hotshoe.kernels.weights import NF4_VALUES, Nf4Weight
from hotshoe.server.model.quantize import quantize_nf4

needs_kernel = pytest.mark.skipif(nf4_linear.kernel() is None, reason="needs AVX512-BF16")


def random_weight(out_features: int, in_features: int, seed: int) -> Nf4Weight:
    generator = torch.Generator().manual_seed(seed)
    return quantize_nf4(torch.randn(out_features, in_features, generator=generator) * 0.1)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("shape", [(64, 128), (32, 192), (5, 30), (160, 576)])
def test_dequantizing_equals_bitsandbytes(shape: tuple[int, int]) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.1).bfloat16()
    codes, state = quantize_4bit(weight, blocksize=64, compress_statistics=True, quant_type="nf4")
    ours = quantize_nf4(weight)
    assert torch.equal(ours.codes, codes.reshape(-1))
    state.dtype = torch.float32
    expected = dequantize_4bit(codes, state)
    torch.testing.assert_close(reference.dequantize_nf4(ours), expected, rtol=2e-3, atol=1e-6)
    assert relative_error(reference.dequantize_nf4(ours), expected.double()) < 1e-4


def test_the_nf4_values_are_those_of_bitsandbytes() -> None:
    assert torch.allclose(random_weight(32, 64, 0).quant_map, NF4_VALUES, atol=1e-7)


@pytest.mark.parametrize("rows", [1, 3, 4, 17, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@needs_kernel
def test_the_cpu_kernel_equals_the_reference(rows: int, dtype: torch.dtype) -> None:
    weight = random_weight(96, 192, rows)
    x = torch.randn(rows, 192).to(dtype)
    y = ops.linear(x, nf4_linear.pack([weight]))
    assert y.dtype == dtype
    assert relative_error(y, reference.nf4_linear(x.double(), weight)) < 1e-2


@needs_kernel
def test_the_cpu_kernel_takes_rows_that_do_not_lie_side_by_side() -> None:
    weight = nf4_linear.pack([random_weight(64, 64, 0)])
    wide = torch.randn(6, 192).bfloat16()
    assert torch.equal(ops.linear(wide[:, 64:128], weight), ops.linear(wide[:, 64:128].contiguous(), weight))
    across = torch.randn(64, 6)
    assert torch.equal(ops.linear(across.T, weight), ops.linear(across.T.contiguous(), weight))


@needs_kernel
def test_packed_weights_side_by_side_equal_each_alone() -> None:
    parts = [random_weight(64, 128, 1), random_weight(32, 128, 2), random_weight(32, 128, 3)]
    x = torch.randn(5, 128)
    alone = torch.cat([ops.linear(x, nf4_linear.pack([part])) for part in parts], dim=1)
    assert torch.equal(ops.linear(x, nf4_linear.pack(parts)), alone)


@needs_kernel
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    weight = nf4_linear.pack([random_weight(96, 128, 4)])
    x = torch.randn(7, 128)
    others = torch.full((7, 128), float("nan"))
    others[3] = x[3]
    assert torch.equal(ops.linear(others, weight)[3], ops.linear(x, weight)[3])


@pytest.mark.parametrize("rows", [nf4_linear.DENSE_ROWS - 1, nf4_linear.DENSE_ROWS])
@needs_kernel
def test_many_rows_run_on_the_dense_copy(rows: int) -> None:
    weight = random_weight(64, 128, 8)
    dense = dense_linear.pack(reference.dequantize_nf4(weight), torch.bfloat16)
    assert isinstance(dense, dense_linear.PackedDense)
    x = torch.randn(rows, 128)
    y = ops.linear(x, nf4_linear.pack([weight], dense=dense))
    assert torch.equal(y, ops.linear(x, dense)) == (rows >= nf4_linear.DENSE_ROWS)
    assert relative_error(y, reference.nf4_linear(x.double(), weight)) < 1e-2
    with pytest.raises(ValueError, match=r"dense: expected \[32, 128\]"):
        nf4_linear.pack([random_weight(32, 128, 8)], dense=dense)


@pytest.mark.parametrize("shape", [(48, 128), (64, 96)])
@needs_kernel
def test_weights_that_fill_no_whole_tile_are_refused(shape: tuple[int, int]) -> None:
    weight = random_weight(*shape, seed=5)
    assert not nf4_linear.fits(weight)
    with pytest.raises(ValueError, match="does not fit"):
        nf4_linear.pack([weight])


@pytest.mark.parametrize("rows", [1, 6])
def test_the_bitsandbytes_kernel_equals_the_reference(rows: int) -> None:
    parts = [random_weight(64, 128, 6), random_weight(40, 128, 7)]
    x = torch.randn(rows, 128).bfloat16()
    y = ops.linear(x, bnb_linear.pack(parts, torch.device("cpu")))
    expected = torch.cat([reference.nf4_linear(x.double(), part) for part in parts], dim=1)
    assert relative_error(y, expected) < 1e-2


def test_inputs_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x: expected \[rows, 64\]"):
        ops.linear(torch.zeros(2, 32), torch.zeros(8, 64))


def test_weights_of_no_kernel_are_refused() -> None:
    with pytest.raises(TypeError, match="Nf4Weight"):
        ops.linear(torch.zeros(2, 64), random_weight(32, 64, 0))


def test_parts_of_another_size_are_refused() -> None:
    weight = random_weight(32, 64, 0)
    with pytest.raises(ValueError, match="codes"):
        Nf4Weight(64, 64, weight.codes, weight.quant_map, weight.absmax, weight.absmax_code, weight.nested_absmax)
    with pytest.raises(ValueError, match="nested"):
        Nf4Weight(32, 64, weight.codes, weight.quant_map, weight.absmax)
