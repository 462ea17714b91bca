"""PROMPT_TUNING: learned embeddings of virtual tokens that stand before every prompt."""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.peft_config import COUNT, NULL, OBJECT, TEXT, Config, Rule, either, one_of
from hotshoe.registry.formats.plan import Read, Tensors
from hotshoe.registry.formats.prefix_tuning import require_base_size, take_prompt
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {
    "num_attention_heads": either(COUNT, NULL),
    "num_transformer_submodules": one_of(1, None),
    # Where the embeddings began before they were trained.
    "prompt_tuning_init": one_of("RANDOM", "TEXT", "SAMPLE_VOCAB"),
    "prompt_tuning_init_text": Rule("text or null", lambda value: value is None or isinstance(value, str)),
    "tokenizer_name_or_path": either(TEXT, NULL),
    "tokenizer_kwargs": either(OBJECT, NULL),
}


@dataclass(frozen=True, slots=True)
class PromptTuningPlan:
    """One tensor: an embedding for each virtual token."""

    embeddings: TensorEntry  # [virtual_tokens, hidden_size]
    rank: int = 0
    linears: tuple[LinearId, ...] = ()

    @property
    def virtual_tokens(self) -> int:
        return self.embeddings.shape[0]

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        return LoweredAdapter("PROMPT_TUNING", prompt_embeddings=read(self.embeddings))


def plan_prompt_tuning(config: Config, tensors: Tensors, base: BaseShape) -> PromptTuningPlan:
    """The plan of a PROMPT_TUNING adapter; see `Format`."""
    embeddings = take_prompt(config, tensors, base, width=base.hidden_size)
    require_base_size(config, "num_layers", base.num_layers, base)
    require_base_size(config, "token_dim", base.hidden_size, base)
    config.close("PROMPT_TUNING", _REST)
    return PromptTuningPlan(embeddings)
