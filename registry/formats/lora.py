"""LORA: y = W x + b + s B A x, with rank-stabilized scales, scales and ranks by module, trained biases, and DoRA.

s = lora_alpha / r, or lora_alpha / √r with use_rslora. lora_bias adds s · lora_B.bias; bias="lora_only" and "all"
replace b. With alora_invocation_tokens it acts only from where they stand in the prompt. use_dora gives each row of
W + s B A a trained norm m: y = g ∘ (W x) + (g ∘ s B) A x + b, where g is m over the row's own norm, which W's lowered
form knows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.module_values import take_by_module
from hotshoe.registry.formats.peft_config import (
    COUNT,
    FLAG,
    INTEGER,
    NOTHING,
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
from hotshoe.registry.formats.plan import Plan, Read, Tensors, require_shape
from hotshoe.registry.formats.replaced import ReplacingPlan, take_trainable_tokens
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

# Fields that change what is computed, at the values at which they do not, and fields that never do.
REST: Mapping[str, Rule[object]] = {
    "use_qalora": one_of(False),
    "use_bdlora": NULL,
    "alora_invocation_tokens": NULL,
    "arrow_config": NULL,
    "kasa_config": NULL,
    "layer_replication": NOTHING,
    "megatron_config": NULL,
    "monteclora_config": NULL,
    "target_parameters": NOTHING,
    "trainable_token_indices": NULL,
    "velora_config": NULL,
    # Read by PEFT only where init_lora_weights names them.
    "corda_config": either(OBJECT, NULL),
    "eva_config": either(OBJECT, NULL),
    "loftq_config": either(OBJECT, NULL),
    "lora_ga_config": either(OBJECT, NULL),
    "ensure_weight_tying": FLAG,  # of embeddings and lm_head, which are refused
    "fan_in_fan_out": FLAG,  # how W is stored: A and B have their shapes either way
    "lora_dropout": SHARE,
    "megatron_core": either(TEXT, NULL),
    "qalora_group_size": COUNT,
}

# The others (pissa, olora, corda, loftq, lora_ga) change the base that A and B were trained on, and mica is a variant.
_INITS = one_of(True, False, "gaussian", "eva", "orthogonal")


_BIASES = one_of("none", "lora_only", "all")


@dataclass(frozen=True, slots=True)
class _LinearPlan:
    a: TensorEntry
    b: TensorEntry
    scale: float
    added_bias: TensorEntry | None = None  # lora_B.bias, scaled as B is
    row_norms: TensorEntry | None = None  # DoRA's m, [out_features]


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """A and B by linear, and the biases that replace the base's."""

    low_rank: Mapping[LinearId, _LinearPlan]
    biases: Mapping[LinearId, TensorEntry]
    linears: tuple[LinearId, ...]
    invocation: tuple[int, ...] | None = None
    virtual_tokens: int = 0

    @property
    def rank(self) -> int:
        return max(part.a.shape[0] for part in self.low_rank.values())

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        linears = {linear: self._lower_linear(linear, read, base) for linear in self.linears}
        return LoweredAdapter("LORA", linears, invocation=self.invocation)

    def _lower_linear(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        bias_delta = None
        if linear in self.biases:
            replaced = base.bias(linear)
            assert replaced is not None  # has_bias was checked
            bias_delta = read(self.biases[linear]) - replaced
        part = self.low_rank.get(linear)
        if part is None:
            return LoweredLinear(bias_delta=bias_delta)
        if part.added_bias is not None:
            added = read(part.added_bias, scale=part.scale)
            bias_delta = added if bias_delta is None else bias_delta + added
        a, b = read(part.a), read(part.b, scale=part.scale)
        if part.row_norms is None:
            return LoweredLinear(a=a, b=b, bias_delta=bias_delta, scale=part.scale)
        gain = read(part.row_norms) / row_norms(base.weight(linear), a, b)
        return LoweredLinear(a=a, b=b * gain[:, None], output_scale=gain, bias_delta=bias_delta, scale=part.scale)


def row_norms(weight: "Tensor", a: "Tensor", b: "Tensor") -> "Tensor":
    """[out_features]: those of W + B A, which is never formed."""
    crossed = ((weight @ a.T) * b).sum(1)
    own = ((b @ (a @ a.T)) * b).sum(1)
    return (weight.square().sum(1) + 2 * crossed + own).sqrt()


def plan_lora(config: Config, tensors: Tensors, base: BaseShape) -> Plan:
    """The plan of a LORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank_of = take_by_module(config, "r", "rank_pattern", COUNT, 8)
    alpha_of = take_by_module(config, "lora_alpha", "alpha_pattern", NUMBER, 8)
    is_stabilized = config.take("use_rslora", FLAG, default=False)
    invocation = config.take("alora_invocation_tokens", either(NULL, list_of(INTEGER)), default=None)
    has_norms = config.take("use_dora", FLAG if invocation is None else one_of(False), default=False)
    has_added_bias = config.take("lora_bias", one_of(False) if has_norms else FLAG, default=False)
    if invocation is not None:
        _check_invocation(invocation, base)
    bias = config.take("bias", _BIASES if invocation is None else one_of("none"), default="none")
    config.take("init_lora_weights", one_of(True, False) if has_added_bias else _INITS, default=True)
    tokens = take_trainable_tokens(config, tensors, base) if invocation is None else None
    config.close("LORA", REST)

    tensors.require_known_modules()
    low_rank = {}
    for linear in targets:
        module = base.linears[linear].module
        rank = rank_of(module)
        scale = alpha_of(module) / (math.sqrt(rank) if is_stabilized else rank)
        low_rank[linear] = _plan_linear(linear, tensors, base, rank=rank, scale=scale)
        if has_added_bias:
            low_rank[linear] = replace(low_rank[linear], added_bias=_take_vector(linear, "lora_B.bias", tensors, base))
        if has_norms:
            norms = _take_vector(linear, "lora_magnitude_vector", tensors, base)
            low_rank[linear] = replace(low_rank[linear], row_norms=norms)
    biases = _plan_biases(bias, low_rank, tensors, base)
    linears = tuple(linear for linear in base.linears if linear in low_rank or linear in biases)
    plan = LoraPlan(low_rank, biases, linears, None if invocation is None else tuple(invocation))
    return plan if tokens is None else ReplacingPlan("LORA", tokens, plan)


def _check_invocation(token_ids: Sequence[int], base: BaseShape) -> None:
    if not token_ids or max(token_ids) >= base.vocab_size:
        raise InvalidAdapter(
            "alora_invocation_tokens", f"expected token ids below {base.vocab_size}, one at least, found {token_ids}"
        )


def _plan_linear(linear: LinearId, tensors: Tensors, base: BaseShape, *, rank: int, scale: float) -> _LinearPlan:
    shape = base.linears[linear]
    a = tensors.take_of(linear, "lora_A.weight", reason="target_modules selects its module")
    b = tensors.take_of(linear, "lora_B.weight", reason="target_modules selects its module")
    require_shape(a, (None, shape.in_features), of=f"{shape.module} of {base.name}")
    require_shape(b, (shape.out_features, None), of=f"{shape.module} of {base.name}")
    for entry, found in ((a, a.shape[0]), (b, b.shape[1])):
        if found != rank:
            raise InvalidAdapter(entry.name, f"found rank {found}, expected {rank} by r and rank_pattern")
    return _LinearPlan(a, b, scale)


def _take_vector(linear: LinearId, suffix: str, tensors: Tensors, base: BaseShape) -> TensorEntry:
    """One number for each output."""
    shape = base.linears[linear]
    vector = tensors.take_of(linear, suffix, reason="lora_bias or use_dora is true")
    require_shape(vector, (shape.out_features,), of=f"{shape.module} of {base.name}")
    return vector


def _plan_biases(
    bias: str, low_rank: Mapping[LinearId, _LinearPlan], tensors: Tensors, base: BaseShape
) -> dict[LinearId, TensorEntry]:
    """The trained biases, which PEFT calls base_layer.bias where it has wrapped the linear."""
    biases = {}
    for linear, shape in base.linears.items():
        if bias == "none" or not shape.has_bias or (bias == "lora_only" and linear not in low_rank):
            continue
        suffix = "base_layer.bias" if linear in low_rank else "bias"
        biases[linear] = tensors.take_of(linear, suffix, reason=f"bias is {bias}")
        require_shape(biases[linear], (shape.out_features,), of=f"{shape.module} of {base.name}")
    return biases
