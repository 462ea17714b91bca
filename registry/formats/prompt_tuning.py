"""PROMPT_TUNING, P_TUNING, CPT: learned embeddings of virtual tokens that stand before every prompt.

P_TUNING learned them through an encoder, CPT as changes of a context's embeddings; their files hold what came of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.peft_config import (
    COUNT,
    INTEGER,
    NULL,
    NUMBER,
    OBJECT,
    SHARE,
    TEXT,
    Config,
    Rule,
    either,
    list_of,
    one_of,
)
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


_P_TUNING_REST: Mapping[str, Rule[object]] = {
    "num_attention_heads": either(COUNT, NULL),
    "num_transformer_submodules": one_of(1, None),
    # The encoder that is left behind.
    "encoder_dropout": SHARE,
    "encoder_hidden_size": either(COUNT, NULL),
    "encoder_num_layers": COUNT,
    "encoder_reparameterization_type": one_of("MLP", "LSTM"),
}
_INTEGERS = either(list_of(INTEGER), NULL)
_CPT_REST: Mapping[str, Rule[object]] = {
    "num_attention_heads": either(COUNT, NULL),
    "num_transformer_submodules": one_of(1, None),
    "tokenizer_name_or_path": either(TEXT, NULL),
    # The context that training began with, and how it was trained.
    "cpt_mask": _INTEGERS,
    "cpt_token_ids": _INTEGERS,
    "cpt_tokens_type_mask": _INTEGERS,
    "opt_loss_decay_factor": either(NUMBER, NULL),
    "opt_projection_epsilon": either(NUMBER, NULL),
    "opt_projection_format_epsilon": either(NUMBER, NULL),
    "opt_weighted_loss_type": either(TEXT, NULL),
}


@dataclass(frozen=True, slots=True)
class PromptTuningPlan:
    """One tensor: an embedding for each virtual token."""

    kind: str
    embeddings: TensorEntry  # [virtual_tokens, hidden_size]
    rank: int = 0
    linears: tuple[LinearId, ...] = ()

    @property
    def virtual_tokens(self) -> int:
        return self.embeddings.shape[0]

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        return LoweredAdapter(self.kind, prompt_embeddings=read(self.embeddings))


def _plan(
    kind: str, rest: Mapping[str, Rule[object]], config: Config, tensors: Tensors, base: BaseShape
) -> PromptTuningPlan:
    embeddings = take_prompt(config, tensors, base, width=base.hidden_size)
    require_base_size(config, "num_layers", base.num_layers, base)
    require_base_size(config, "token_dim", base.hidden_size, base)
    config.close(kind, rest)
    return PromptTuningPlan(kind, embeddings)


plan_prompt_tuning = partial(_plan, "PROMPT_TUNING", _REST)  # see `Format`
plan_p_tuning = partial(_plan, "P_TUNING", _P_TUNING_REST)
plan_cpt = partial(_plan, "CPT", _CPT_REST)
