"""The same batches through transformers, PEFT and bitsandbytes: what a user would run who has no adapter server."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hotshoe.server.gpu_session.ours import Row, timed
from hotshoe.server.gpu_session.sizes import TARGETS, SessionSizes


def measure(sizes: SessionSizes, device: torch.device) -> Iterator[Row]:
    """Each batch's decode time; rows have an adapter each, through PEFT's mixed batches."""
    model = random_model(sizes.config, device)
    plain = _decode(model, sizes, device)
    for rows in sizes.rows:
        yield _row(rows, 0) | timed(plain(rows, None), sizes.steps, device)
    for length in sizes.prompts:
        yield _row(length, 0) | {"what": "prompt"} | timed(_prompt(model, length, device), 2, device)
    adapted = with_adapters(model, sizes, device)
    decode = _decode(adapted, sizes, device)
    for rows, adapters in sizes.batches:
        if adapters:
            names = [f"a{row * adapters // rows}" for row in range(rows)]
            yield _row(rows, adapters) | timed(decode(rows, names), max(1, sizes.steps // 2), device)


def random_model(config: dict[str, Any], device: torch.device) -> Any:
    """A Llama whose decoder's linears are bitsandbytes' NF4 with double quantization, all random."""
    from bitsandbytes.nn import Linear4bit, Params4bit
    from transformers import LlamaConfig, LlamaForCausalLM

    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**config))
    for name, module in list(model.model.layers.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        linear = Linear4bit(
            module.in_features, module.out_features, bias=False, compute_dtype=dtype, quant_type="nf4", device="meta"
        )
        weight = torch.randn(module.weight.shape, device=device, dtype=torch.bfloat16) * 0.02
        linear.weight = Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
        parent, _, child = name.rpartition(".")
        setattr(model.model.layers.get_submodule(parent), child, linear.to(device))
    for name, parameter in list(model.named_parameters()):
        if parameter.device.type == "meta":
            values = torch.empty(parameter.shape, dtype=dtype, device=device)
            values = values.fill_(1.0) if parameter.ndim == 1 else values.normal_(std=0.02)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, nn.Parameter(values, requires_grad=False))
    # the rotary embedding's frequencies, which no parameter holds
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    return model.eval()


def with_adapters(model: Any, sizes: SessionSizes, device: torch.device) -> Any:
    """The model with as many LORA adapters as any batch has, on all its linears."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=sizes.rank, lora_alpha=sizes.rank, target_modules=list(TARGETS), init_lora_weights=False)
    with device:  # else every factor is drawn on the host
        adapted = get_peft_model(model, config, adapter_name="a0", autocast_adapter_dtype=False)
        for index in range(1, max(sizes.adapters)):
            adapted.add_adapter(f"a{index}", config)
    dtype = model.lm_head.weight.dtype
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(dtype)
    return adapted.eval()


def _decode(model: Any, sizes: SessionSizes, device: torch.device) -> Callable[..., Callable[[], Any]]:
    def build(rows: int, names: list[str] | None) -> Callable[[], Any]:
        more = {} if names is None else {"adapter_names": names}
        token = torch.ones(rows, 1, dtype=torch.int64, device=device)
        with torch.inference_mode():
            ids = token.expand(-1, sizes.context - 1)
            cache = model(ids, use_cache=True, logits_to_keep=1, **more).past_key_values

        @torch.inference_mode()
        def run() -> Any:
            logits = model(token, past_key_values=cache, use_cache=True, **more).logits
            return logits[:, -1].argmax(dim=-1).tolist()

        return run

    return build


def _prompt(model: Any, length: int, device: torch.device) -> Callable[[], Any]:
    ids = torch.ones(1, length, dtype=torch.int64, device=device)

    @torch.inference_mode()
    def run() -> Any:
        return model(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(dim=-1).tolist()

    return run


def _row(rows: int, adapters: int) -> Row:
    return {"system": "PEFT + bitsandbytes", "what": "decode", "rows": rows, "adapters": adapters}
