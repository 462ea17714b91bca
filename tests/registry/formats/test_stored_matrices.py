"""Factors in 16 bits stay as their file has them, and stand for exactly the numbers that reading them wider gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft_adapters import adapter_files, save_peft, write_lora
from peft_kinds import CONFIGS, suits
from safetensors.torch import load_file, save_file
from tiny_models import ModelWeights, tiny_llama

from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.registry.formats.stored_matrix import StoredMatrix

DTYPES = [torch.float16, torch.bfloat16]
LORAS = [name for name, config in CONFIGS.items() if suits(name, "llama") and config().peft_type == "LORA"]
EVERY = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)  # pattern of 16 bits


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))


def lowered(directory):
    return lower_adapter(adapter_files(directory), ModelWeights(tiny_llama()))


@pytest.mark.parametrize("scale", [1.0, 2.0, 1.7, 1e-3, -0.25])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_is_the_one_that_numpy_makes_of_it(dtype, scale):
    values = EVERY.view(dtype)
    values = values[values.isfinite() & (values.abs() < 1e18)]
    if dtype is torch.float16:
        widened = values.numpy().astype(np.float32)
    else:
        widened = (values.view(torch.int16).numpy().view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    stored = StoredMatrix(values, scale)
    assert stored.is_finite
    assert same(stored.wide(), torch.from_numpy(widened * np.float32(scale)))


def test_a_scale_may_overflow_what_is_stored():
    large = torch.tensor([[0.0, 1e18], [-1e19, 1.0]]).bfloat16()
    assert StoredMatrix(large, 1e19).is_finite and not StoredMatrix(large, 1e20).is_finite
    assert not StoredMatrix(large, 1e300).is_finite
    assert StoredMatrix(torch.empty(0, 8).half(), 3.0).is_finite


@pytest.mark.parametrize("fields", [{}, {"use_rslora": True}, {"lora_bias": True}])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_lora_keeps_the_bytes_of_its_factors(dtype, fields, tmp_path):
    files = write_lora(tmp_path, tiny_llama(), rank=8, alpha=13, dtype=dtype, **fields)
    scale = 13 / 8**0.5 if "use_rslora" in fields else 13 / 8
    file = load_file(files / "adapter_model.safetensors")
    found = lowered(files)
    shapes = ModelWeights(tiny_llama()).shape.linears
    for linear, part in found.linears.items():
        a, b = (file[f"base_model.model.{shapes[linear].module}.lora_{x}.weight"] for x in "AB")
        assert isinstance(part.a, StoredMatrix) and isinstance(part.b, StoredMatrix)
        assert torch.equal(part.a.values, a) and torch.equal(part.b.values, b)
        assert same(part.factors[0], a.float())
        assert same(part.factors[1], torch.from_numpy(b.float().numpy() * np.float32(scale)))
    of_factors = sum(tensor.nbytes for name, tensor in file.items() if not name.endswith("bias"))
    of_biases = 2 * sum(tensor.nbytes for name, tensor in file.items() if name.endswith("bias"))
    assert found.size_bytes == of_factors + of_biases


@pytest.mark.parametrize("name", LORAS)
def test_any_variant_of_lora_in_16_bits_is_lowered_to_the_numbers_of_the_same_in_32(name, tmp_path):
    save_peft(tmp_path, tiny_llama(), CONFIGS[name]())
    weights = tmp_path / "adapter_model.safetensors"
    narrow = {
        key: tensor.bfloat16() if tensor.is_floating_point() else tensor for key, tensor in load_file(weights).items()
    }
    save_file(narrow, weights)
    found = lowered(tmp_path)
    save_file(
        {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in narrow.items()}, weights
    )
    wanted = lowered(tmp_path)
    assert not list(wanted.stored()) and found.linears.keys() == wanted.linears.keys()
    for linear, part in found.linears.items():
        other = wanted.linears[linear]
        assert part.rank == other.rank and part.scale == other.scale
        assert (part.factors is None) == (other.factors is None)
        pairs = [*zip(part.factors or (), other.factors or (), strict=True)]
        pairs += zip(replace(part, a=None, b=None).tensors(), replace(other, a=None, b=None).tensors(), strict=True)
        assert all(same(one, two) for one, two in pairs)
