"""The same batches through transformers, PEFT and bitsandbytes: what a user would run who has no adapter server."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from hotshoe.server.gpu_session.ours import Row, timed
from hotshoe.server.gpu_session.sizes import TARGETS, SessionSizes

_LIMIT_SECONDS = 2.0  # of a batch, so that all of them end in the part's time


def measure(sizes: SessionSizes, device: torch.device) -> Iterator[Row]:
    """Each batch's decode time; rows have an adapter each, through PEFT's mixed batches.

    Batches of few adapters come first: adding one takes PEFT a third of a second, and a step takes the longer the more
    of them it mixes.
    """
    model = random_model(sizes.config, device)
    plain = _decode(model, sizes, device)
    for rows in sizes.rows:
        yield _row(rows, 0) | timed(plain(rows, None), sizes.steps, device, limit_seconds=_LIMIT_SECONDS)
    for length in sizes.prompts:
        yield _row(length, 0) | {"what": "prompt"} | timed(_prompt(model, length, device), 2, device)
    adapted = Adapted(model, sizes.rank, device)
    decode = _decode(adapted.model, sizes, device)
    for adapters, rows in sorted((adapters, rows) for rows, adapters in sizes.batches if adapters):
        adapted.add_up_to(adapters)
        names = [f"a{row * adapters // rows}" for row in range(rows)]
        steps = max(1, sizes.steps // 2)
        yield _row(rows, adapters) | timed(decode(rows, names), steps, device, limit_seconds=_LIMIT_SECONDS)


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


class Adapted:
    """A model with LORA adapters on all its linears: a0, a1, …"""

    def __init__(self, model: Any, rank: int, device: torch.device) -> None:
        from peft import LoraConfig, get_peft_model

        self._config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights=False)
        self._device, self._dtype = device, model.lm_head.weight.dtype
        self._count = 1
        with device:  # else every factor is drawn on the host
            self.model = get_peft_model(model, self._config, adapter_name="a0", autocast_adapter_dtype=False)
        self._settle()

    def add_up_to(self, count: int) -> None:
        """Adds adapters until there are so many."""
        with self._device:
            for index in range(self._count, count):
                self.model.add_adapter(f"a{index}", self._config)
        self._count = max(self._count, count)
        self._settle()

    def _settle(self) -> None:
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(self._dtype)
        self.model.eval()


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
