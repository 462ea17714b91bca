"""BOFT of several butterfly factors, which PEFT computes only with its CUDA extension: held to PEFT beside a stand-in.

The extension does one thing, in a CUDA kernel of five lines: blocks [z, n, b, b] → block-diagonal [z, n b, n b].
"""

import json

import pytest
import torch
from canonical import canonical_logits
from peft import BOFTConfig, PeftModel
from peft.tuners.boft import layer as boft_layer
from peft_adapters import adapter_files, save_peft
from tiny_models import TARGETS, ModelWeights, base_shape, tiny_llama, tiny_qwen2

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.lowering import inspect_adapter, lower_adapter

TOKENS = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(5))


class BlockDiagonal:
    """What PEFT's extension does, by torch."""

    @staticmethod
    def forward(blocks):
        return [torch.stack([torch.block_diag(*of) for of in blocks])]


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.setattr(boft_layer, "_FBD_CUDA", BlockDiagonal())


def config(factors, **fields):
    return BOFTConfig(task_type="CAUSAL_LM", target_modules=list(TARGETS), boft_n_butterfly_factor=factors, **fields)


@pytest.mark.parametrize("model", [tiny_llama, tiny_qwen2])
@pytest.mark.parametrize(
    "chosen",
    [config(1), config(2), config(3), config(4, boft_block_size=2), config(3, boft_block_size=0, boft_block_num=8)],
)
def test_products_of_butterfly_factors_give_pefts_logits(chosen, model, extension, tmp_path):
    save_peft(tmp_path, model(), chosen)
    base = model()
    files = adapter_files(tmp_path)
    ours = canonical_logits(base, lower_adapter(files, ModelWeights(base)), TOKENS)
    with torch.no_grad():
        plain = base(TOKENS).logits
        theirs = PeftModel.from_pretrained(base, tmp_path).eval()(input_ids=TOKENS).logits
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - plain).abs().max() > 0.02


def test_a_factor_that_peft_left_out_is_left_out_here(tmp_path):
    save_peft(tmp_path, tiny_llama(), config(2))  # without the extension, PEFT makes one factor and writes 2
    assert json.loads((tmp_path / "adapter_config.json").read_text())["boft_n_butterfly_factor"] == 2
    base = tiny_llama()
    ours = canonical_logits(base, lower_adapter(adapter_files(tmp_path), ModelWeights(base)), TOKENS)
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(base, tmp_path).eval()(input_ids=TOKENS).logits
    assert (ours - theirs).abs().max() <= 1e-5


def test_other_factors_than_the_config_says_are_refused(extension, tmp_path):
    save_peft(tmp_path, tiny_llama(), config(3))
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"boft_n_butterfly_factor": 2}))
    with pytest.raises(InvalidAdapter, match="found 3 factors, expected 2 by boft_n_butterfly_factor"):
        inspect_adapter(adapter_files(tmp_path), base_shape(tiny_llama()))
