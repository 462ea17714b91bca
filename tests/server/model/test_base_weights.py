"""The weights that lowerings read stay what they were, whatever a kernel does to its own copies.

On CPUs with AVX512-BF16 bitsandbytes rearranges a Linear4bit's codes in place at its first forward pass in eval mode;
who dequantizes them afterwards gets other numbers without a word, and DoRA, merges and the doctor with them.
"""

from pathlib import Path

import pytest
import torch
from decoder_inputs import Chunk, decoder_input, paged_slots
from model_directories import write_tiny_model
from peft_adapters import adapter_files, save_peft
from peft_kinds import CONFIGS
from torch import Tensor, nn

from hotshoe.kernels.cpu import nf4_linear
from hotshoe.kernels.reference import dequantize_nf4
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.server.model.backends import Backend, choose_backend, cuda_backend
from hotshoe.server.model.checkpoints import DirectoryCheckpoint
from hotshoe.server.model.decoder_reader import read_decoder
from hotshoe.server.model.loader import OpenBase, open_base
from hotshoe.server.model.quantize import quantize_nf4

needs_kernel = pytest.mark.skipif(nf4_linear.kernel() is None, reason="needs AVX512-BF16")
BACKENDS = ["reference", pytest.param("cpu_nf4", marks=needs_kernel), "cpu_dense", "bitsandbytes"]
PROMPT = [5, 9, 200, 31, 7, 88, 42, 3]


def backend_of(name: str) -> Backend:
    return cuda_backend(torch.device("cpu")) if name == "bitsandbytes" else choose_backend("cpu", name)


@pytest.fixture
def base(tmp_path: Path) -> OpenBase:
    """Wide enough for every kernel's tiles."""
    write_tiny_model(tmp_path / "model", hidden_size=128)
    return open_base(str(tmp_path / "model"), cache=tmp_path / "bases")


@pytest.fixture
def dora(base: OpenBase, tmp_path: Path) -> dict[str, Path]:
    save_peft(tmp_path / "dora", write_tiny_model(tmp_path / "again", hidden_size=128), CONFIGS["dora"]())
    return adapter_files(tmp_path / "dora")


def weights_of(base: OpenBase) -> list[Tensor]:
    return [base.weights.weight(linear) for linear in base.weights.shape.linears]


def tensors_of(lowered: LoweredAdapter) -> list[Tensor]:
    return [tensor.clone() for tensor in lowered.tensors()]


@pytest.mark.parametrize("name", BACKENDS)
def test_a_forward_pass_changes_no_weight_that_a_lowering_reads(
    name: str, base: OpenBase, dora: dict[str, Path]
) -> None:
    weights, lowered = weights_of(base), tensors_of(lower_adapter(dora, base.weights))
    decoder = read_decoder(base.checkpoint, base.spec, backend_of(name))
    kv = decoder.new_kv_cache(64)
    slots = paged_slots(len(PROMPT) + 1, first_page=1)
    decoder.forward(decoder_input([Chunk(PROMPT, 0, slots)]), kv)
    decoder.forward(decoder_input([Chunk([77], len(PROMPT), slots)]), kv)  # a single row takes another kernel
    assert all(one.equal(two) for one, two in zip(weights_of(base), weights, strict=True))
    after = tensors_of(lower_adapter(dora, base.weights))
    assert all(one.equal(two) for one, two in zip(after, lowered, strict=True))


def test_the_weights_are_the_quantizer_s_own(base: OpenBase, tmp_path: Path) -> None:
    original = DirectoryCheckpoint(tmp_path / "model")
    for linear, shape in base.weights.shape.linears.items():
        expected = dequantize_nf4(quantize_nf4(original.tensor(f"{shape.module}.weight")))
        assert base.weights.weight(linear).equal(expected)


@needs_kernel
def test_bitsandbytes_own_layer_does_rearrange_its_codes_in_place(base: OpenBase) -> None:
    """If this fails, the trap is gone, and the test above guards against nothing."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = weights_of(base)[0].bfloat16()
    layer = Linear4bit(weight.shape[1], weight.shape[0], bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
    layer.weight = Params4bit(weight, requires_grad=False, quant_type="nf4")
    layer: nn.Module = layer.to("cpu").eval()
    before = dequantize_4bit(layer.weight.data.clone(), layer.weight.quant_state).float()
    with torch.inference_mode():
        layer(torch.randn(4, weight.shape[1], dtype=torch.bfloat16))
    after = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
    assert (before - weight.float()).norm() < 0.2 * weight.float().norm()
    assert before.shape != after.shape or (before - after).norm() > 0.5 * before.norm()
