"""Norm, rotation and activation against the definitions in float64."""

import math

import pytest
import torch
from transformers.activations import ACT2FN

from hotshoe.kernels import ops, reference


@pytest.mark.parametrize("rows", [1, 5, 33])
def test_rms_norm_equals_the_reference(rows: int) -> None:
    x, weight = torch.randn(rows, 96) * 3, torch.randn(96)
    expected = reference.rms_norm(x.double(), weight, 1e-5)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5).double(), expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_of_heads_takes_a_weight_for_each() -> None:
    x, weight = torch.randn(5, 6, 32), torch.randn(6, 32)
    expected = reference.rms_norm(x.double(), weight, 1e-6)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-6).double(), expected, rtol=1e-5, atol=1e-6)


def test_rope_equals_the_reference_in_place() -> None:
    fused = torch.randn(7, 6, 32)
    x = fused[:, :4]  # a view, as the decoder has it
    angles = torch.randn(7, 16)
    cos, sin = angles.cos(), angles.sin()
    expected = reference.rope(x.double(), torch.cat((cos, cos), -1), torch.cat((sin, sin), -1))
    untouched = fused[:, 4:].clone()
    ops.rope_(x, torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None])
    torch.testing.assert_close(fused[:, :4].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(fused[:, 4:], untouched)


def test_rope_turns_the_first_dimensions_and_leaves_the_others() -> None:
    x, angles = torch.randn(7, 6, 32), torch.randn(7, 10)
    cos, sin = torch.cat((angles.cos(), angles.cos()), -1), torch.cat((angles.sin(), angles.sin()), -1)
    expected = reference.rope(x.double(), cos, sin)
    torch.testing.assert_close(expected[..., :20], reference.rope(x[..., :20].double(), cos, sin))
    assert torch.equal(expected[..., 20:], x[..., 20:].double())


def test_a_norm_of_bfloat16_by_a_float32_weight_is_rounded_once() -> None:
    x, weight = torch.randn(5, 6, 32).bfloat16(), 1 + torch.randn(6, 32) / 50
    for rows, factors in ((x, weight), (x[:, 0], weight[0])):
        expected = reference.rms_norm(rows.double(), factors.double(), 1e-6)
        assert torch.equal(ops.rms_norm(rows, factors, 1e-6), expected.bfloat16())


@pytest.mark.parametrize("gate", ops.GATES)
def test_gates_equal_the_reference(gate: str) -> None:
    gate_up = torch.randn(5, 64) * 4
    expected = getattr(reference, f"{gate}_mul")(gate_up.double())
    torch.testing.assert_close(ops.GATES[gate](gate_up).double(), expected, rtol=1e-5, atol=1e-6)


def test_gates_are_transformers_own() -> None:
    x = torch.randn(64).double()
    for gate, theirs in (("silu", "silu"), ("gelu_tanh", "gelu_pytorch_tanh")):
        found = getattr(reference, f"{gate}_mul")(torch.cat((x, torch.ones_like(x))))
        torch.testing.assert_close(found, ACT2FN[theirs](x))


def test_a_soft_cap_bounds_in_place() -> None:
    x = torch.tensor([-1e9, -0.01, 0.0, 1.0, 1e9])
    capped = ops.soft_cap(x, 3.0)
    assert capped.data_ptr() == x.data_ptr()
    torch.testing.assert_close(capped, torch.tensor([-3.0, -0.01, 0.0, 3 * math.tanh(1 / 3), 3.0]))
    assert ops.soft_cap(x, None) is x


def test_shapes_that_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="weight"):
        ops.rms_norm(torch.zeros(2, 8), torch.zeros(4), 1e-6)
    with pytest.raises(ValueError, match="cos, sin"):
        ops.rope_(torch.zeros(2, 1, 8), torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match="gate_up"):
        ops.silu_mul(torch.zeros(2, 7))
