"""ADAPTION_PROMPT: learned embeddings whose keys and values the queries of the top layers see beside their own context.

As in LLaMA-Adapter: a softmax over them alone, times a gate, added to what attention gives. Keys are not rotated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import GatedPrompt, LoweredAdapter
from hotshoe.registry.formats.peft_config import COUNT, Config, one_of
from hotshoe.registry.formats.plan import MODULE_PREFIX, Read, Tensors, require_shape
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_MODEL_TYPES = ("llama", "mistral")  # those that PEFT can wrap


@dataclass(frozen=True, slots=True)
class AdaptionPromptPlan:
    """A prompt and a gate for each of the top layers."""

    prompts: Mapping[int, TensorEntry]  # [1, length, hidden_size]
    gates: Mapping[int, TensorEntry]  # [1]
    rank: int = 0
    linears: tuple[LinearId, ...] = ()
    virtual_tokens: int = 0

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        shape = base.shape
        found = {}
        for layer, entry in self.prompts.items():
            prompt = read(entry)[0]
            keys, values = (
                _projected(prompt @ base.weight(linear).T, base.bias(linear)).reshape(
                    -1, shape.num_kv_heads, shape.head_dim
                )
                for linear in (LinearId(layer, "k_proj"), LinearId(layer, "v_proj"))
            )
            found[layer] = GatedPrompt(keys, values, read(self.gates[layer]))
        return LoweredAdapter("ADAPTION_PROMPT", gated_prompts=found)


def _projected(product: "Tensor", bias: "Tensor | None") -> "Tensor":
    return product if bias is None else product + bias


def plan_adaption_prompt(config: Config, tensors: Tensors, base: BaseShape) -> AdaptionPromptPlan:
    """The plan of an ADAPTION_PROMPT adapter; see `Format`."""
    config.take("target_modules", one_of("self_attn", None), default=None)
    length = config.require("adapter_len", COUNT)
    layers = config.require("adapter_layers", COUNT)
    config.close("ADAPTION_PROMPT", {})
    if layers > base.num_layers:
        raise InvalidAdapter("adapter_layers", f"found {layers}, but {base.name} has {base.num_layers}")
    if base.model_type not in _MODEL_TYPES:
        raise IncompatibleAdapter("peft_type", f"expected a base of {', '.join(_MODEL_TYPES)}, not {base.model_type}")
    for layer in range(base.num_layers - layers, base.num_layers):
        if base.linears[LinearId(layer, "o_proj")].has_bias:
            raise IncompatibleAdapter("peft_type", f"{base.name} has biases at o_proj, which PEFT would add twice")
    prompts, gates = {}, {}
    for layer in range(base.num_layers - layers, base.num_layers):
        module = f"{MODULE_PREFIX}model.layers.{layer}.self_attn"
        prompts[layer], gates[layer] = (
            tensors.take(f"{module}.adaption_{name}", reason=f"adapter_layers is {layers}")
            for name in ("prompt", "gate")
        )
        require_shape(prompts[layer], (1, length, base.hidden_size), of=f"layer {layer} of {base.name}")
        require_shape(gates[layer], (1,), of=f"layer {layer} of {base.name}")
    return AdaptionPromptPlan(prompts, gates)
