"""PROMPT_TUNING, P_TUNING, CPT: learned embeddings of virtual tokens that stand before every prompt.

P_TUNING learned them through an encoder, CPT as changes of a context's embeddings; their files hold what came of it.
MULTITASK_PROMPT_TUNING has embeddings E that all tasks share, and makes of them E ∘ (columns · rows) of a task.
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
from hotshoe.registry.formats.plan import Read, TaskPlans, Tensors, require_shape
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


_MULTITASK_REST: Mapping[str, Rule[object]] = {
    **_REST,
    # Also from another adapter, in whose file they lay.
    "prompt_tuning_init": one_of(
        *("RANDOM", "TEXT", "SAMPLE_VOCAB", "AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED")
    ),
    "prompt_tuning_init_state_dict_path": either(TEXT, NULL),
    "prompt_tuning_init_task": either(INTEGER, NULL),
}


@dataclass(frozen=True, slots=True)
class _TaskFactors:
    """What a task makes of the embeddings."""

    columns: TensorEntry  # [tasks, virtual_tokens, rank]
    rows: TensorEntry  # [tasks, rank, hidden_size]
    task: int


@dataclass(frozen=True, slots=True)
class PromptTuningPlan:
    """An embedding for each virtual token."""

    kind: str
    embeddings: TensorEntry  # [virtual_tokens, hidden_size]
    factors: _TaskFactors | None = None
    rank: int = 0
    linears: tuple[LinearId, ...] = ()

    @property
    def virtual_tokens(self) -> int:
        return self.embeddings.shape[0]

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        embeddings = read(self.embeddings)
        if self.factors is not None:
            columns, rows = read(self.factors.columns), read(self.factors.rows)
            embeddings = embeddings * (columns[self.factors.task] @ rows[self.factors.task])
        return LoweredAdapter(self.kind, prompt_embeddings=embeddings)


def _plan(
    kind: str, rest: Mapping[str, Rule[object]], config: Config, tensors: Tensors, base: BaseShape
) -> PromptTuningPlan:
    embeddings = _take_embeddings(config, tensors, base)
    config.close(kind, rest)
    return PromptTuningPlan(kind, embeddings)


def _take_embeddings(config: Config, tensors: Tensors, base: BaseShape) -> TensorEntry:
    embeddings = take_prompt(config, tensors, base, width=base.hidden_size)
    require_base_size(config, "num_layers", base.num_layers, base)
    require_base_size(config, "token_dim", base.hidden_size, base)
    return embeddings


def plan_multitask(config: Config, tensors: Tensors, base: BaseShape) -> TaskPlans:
    """The plans of a MULTITASK_PROMPT_TUNING adapter; see `Format`."""
    kind = "MULTITASK_PROMPT_TUNING"
    embeddings = _take_embeddings(config, tensors, base)
    tasks, rank = (config.take(name, COUNT, default=1) for name in ("num_tasks", "num_ranks"))
    config.close(kind, _MULTITASK_REST)
    columns, rows = (
        tensors.take(f"prefix_task_{name}", reason="it makes a task's prompt of the one that all share")
        for name in ("cols", "rows")
    )
    of = f"{tasks} tasks of rank {rank}, by num_tasks and num_ranks"
    require_shape(columns, (tasks, embeddings.shape[0], rank), of=of)
    require_shape(rows, (tasks, rank, base.hidden_size), of=of)
    return TaskPlans(tasks, lambda task: PromptTuningPlan(kind, embeddings, _TaskFactors(columns, rows, task)))


plan_prompt_tuning = partial(_plan, "PROMPT_TUNING", _REST)  # see `Format`
plan_p_tuning = partial(_plan, "P_TUNING", _P_TUNING_REST)
plan_cpt = partial(_plan, "CPT", _CPT_REST)
