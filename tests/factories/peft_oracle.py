"""PEFT's own greedy tokens on the base as it is served: what the server's tokens are compared with."""

from functools import cache
from pathlib import Path
from typing import Any

from hotshoe.clients.recipes.quantized_base import load_quantized_base
from hotshoe.clients.recipes.training import load_adapter, without_adapter


@cache
def _base() -> tuple[Any, Any]:
    model, tokenizer = load_quantized_base()
    model.generation_config.eos_token_id = None  # generate() goes on through the end of a turn
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def oracle_tokenizer() -> Any:
    """The base's tokenizer, loaded once a process."""
    return _base()[1]


def greedy_tokens(adapter_directory: Path | None, prompt_token_ids: list[int], num_tokens: int) -> list[int]:
    """The num_tokens that PEFT's generate() picks after the prompt, in float32; ends of text do not stop it.

    The base is SmolLM2-135M-Instruct with dequantized NF4 linears, loaded once a process. With no adapter directory
    it answers alone.
    """
    import torch

    base, _ = _base()
    model = base if adapter_directory is None else load_adapter(base, adapter_directory)
    prompt = torch.tensor([prompt_token_ids])
    try:
        with torch.inference_mode():
            output = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=num_tokens,
                do_sample=False,
            )
    finally:
        if adapter_directory is not None:
            without_adapter(model)
    tokens: list[int] = output[0, len(prompt_token_ids) :].tolist()
    return tokens
