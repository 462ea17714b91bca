"""LORA: y = W x + b + s B A x, with rank-stabilized scales, scales and ranks by module, trained biases, and variants.

s = lora_alpha / r, or lora_alpha / √r with use_rslora. lora_bias adds s · lora_B.bias; bias="lora_only" and "all"
replace b. With alora_invocation_tokens it acts only from where they stand in the prompt. use_dora gives each row of
W + s B A a trained norm m: y = g ∘ (W x) + (g ∘ s B) A x + b, where g is m over the row's own norm, which W's lowered
form knows. With init_lora_weights "pissa" or "olora", and in KaSA, W is less by what `taken_out` finds, and KaSA has
a trained number for each rank between B and A. BdLoRA is in `lora_blocks`. QALoRA's A acts on the sums of neighbouring
inputs, times how many such sums there are over how many inputs each has. VeLoRA and MonteCLoRA are of training only.
What it does to the embedding and the output head is in `lora_tokens`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId, LinearShape
from hotshoe.registry.formats.lora_blocks import BlockCounts, whole
from hotshoe.registry.formats.lora_tokens import adapted_modules, take_tokens
from hotshoe.registry.formats.lora_variant import LoraVariant, take_variant
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.module_values import take_by_module
from hotshoe.registry.formats.peft_config import (
    COUNT,
    FLAG,
    NOTHING,
    NULL,
    NUMBER,
    OBJECT,
    OFF,
    SHARE,
    TEXT,
    Config,
    Rule,
    either,
    one_of,
)
from hotshoe.registry.formats.plan import Plan, Read, Reader, Tensors, require_shape
from hotshoe.registry.formats.replaced import ReplacedPlan, ReplacingPlan, take_trainable_tokens
from hotshoe.registry.formats.taken_out import TakenOut
from hotshoe.registry.formats.target_modules import require_any, take_modules, take_parameters
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

    from hotshoe.registry.formats.stored_matrix import StoredMatrix

    _Matrix = Tensor | StoredMatrix

_ONE_VARIANT = "PEFT has no such variant together with another, nor with another kind"
# Fields that change what is computed, at the values at which they do not, and fields that never do.
REST: Mapping[str, Rule[object]] = {
    "use_qalora": OFF.because(_ONE_VARIANT),
    "use_bdlora": NULL.because(_ONE_VARIANT),
    "alora_invocation_tokens": NULL.because(_ONE_VARIANT),
    "arrow_config": NULL.because("its router mixes other adapters, anew for each token"),
    "kasa_config": NULL.because(_ONE_VARIANT),
    "layer_replication": NOTHING.because("it was trained on a base of more layers than any that is served"),
    "megatron_config": NULL,
    "monteclora_config": NULL.because(_ONE_VARIANT),
    "trainable_token_indices": NULL,
    "velora_config": NULL.because(_ONE_VARIANT),
    # Read by PEFT only where init_lora_weights names them.
    "corda_config": either(OBJECT, NULL),
    "eva_config": either(OBJECT, NULL),
    "loftq_config": either(OBJECT, NULL),
    "lora_ga_config": either(OBJECT, NULL),
    "ensure_weight_tying": FLAG,
    # Of PEFT's first versions, for matrices that hold several linears at once.
    "enable_lora": NULL.because("it was trained on linears of which only parts are adapted"),
    "fan_in_fan_out": FLAG,  # how W is stored: A and B have their shapes either way
    "lora_dropout": SHARE,
    "merge_weights": FLAG,  # of the same versions: whether B A is added to W in evaluation
    "megatron_core": either(TEXT, NULL),
    "qalora_group_size": COUNT,  # read by PEFT only with use_qalora
}

_BIASES = one_of("none", "lora_only", "all")


@dataclass(frozen=True, slots=True)
class _LinearPlan:
    a: TensorEntry
    b: TensorEntry
    scale: float
    blocks: BlockCounts
    added_bias: TensorEntry | None = None  # lora_B.bias, scaled as B is
    row_norms: TensorEntry | None = None  # DoRA's m, [out_features]
    diagonal: TensorEntry | None = None  # KaSA's, [rank]
    taken_out: TakenOut | None = None  # of W, along as many directions
    pool: int = 1  # neighbouring inputs that A sees as one
    idle: tuple[TensorEntry, ...] = ()  # of training only

    @property
    def trained_rank(self) -> int:
        return self.a.shape[0]

    @property
    def rank(self) -> int:
        return self.trained_rank if self.taken_out is None else 2 * self.trained_rank

    def factors(self, linear: LinearId, read: Read, base: BaseWeights) -> "tuple[Tensor, Tensor]":
        """What W gains before DoRA's gain, as A and as B with its scale."""
        import torch

        a, b = whole(read(self.a), self.blocks.a), whole(read(self.b, scale=self.scale), self.blocks.b)
        if self.pool > 1:
            a = a.repeat_interleave(self.pool, dim=1) * (a.shape[1] / self.pool)
        if self.diagonal is not None:
            b = b * read(self.diagonal)
        if self.taken_out is None:
            return a, b
        gone_a, gone_b = self.taken_out(linear, base.weight(linear), self.trained_rank, self.scale)
        return torch.cat([a, gone_a]), torch.cat([b, -gone_b], dim=1)

    @property
    def is_handed_on(self) -> bool:
        """Whether nothing is computed of A, nor of B but that it is scaled."""
        is_changed = self.blocks != BlockCounts() or self.pool > 1 or self.diagonal is not None
        return not is_changed and self.taken_out is None and self.row_norms is None


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
        return max((part.rank for part in self.low_rank.values()), default=0)

    def lower(self, read: Reader, base: BaseWeights) -> LoweredAdapter:
        handed_on = [part for part in self.low_rank.values() if part.is_handed_on]
        scales = {part.a: 1.0 for part in handed_on} | {part.b: part.scale for part in handed_on}
        matrices = read.matrices(scales)
        linears = {linear: self._lower_linear(linear, read, base, matrices) for linear in self.linears}
        return LoweredAdapter("LORA", linears, invocation=self.invocation)

    def _lower_linear(
        self, linear: LinearId, read: Reader, base: BaseWeights, matrices: "Mapping[TensorEntry, _Matrix]"
    ) -> LoweredLinear:
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
        for entry in part.idle:
            read(entry)
        if part.is_handed_on:
            return LoweredLinear(matrices[part.a], matrices[part.b], bias_delta=bias_delta, scale=part.scale)
        a, b = part.factors(linear, read, base)
        if part.row_norms is None:
            return LoweredLinear(a, b, bias_delta=bias_delta, scale=part.scale)
        gain = read(part.row_norms) / row_norms(base.weight(linear), a, b)
        return LoweredLinear(a=a, b=b * gain[:, None], output_scale=gain, bias_delta=bias_delta, scale=part.scale)


def row_norms(weight: "Tensor", a: "Tensor", b: "Tensor") -> "Tensor":
    """[out_features]: those of W + B A, which is never formed."""
    crossed = ((weight @ a.T) * b).sum(1)
    own = ((b @ (a @ a.T)) * b).sum(1)
    return (weight.square().sum(1) + 2 * crossed + own).sqrt()


def plan_lora(config: Config, tensors: Tensors, base: BaseShape) -> Plan:
    """The plan of a LORA adapter; see `Format`."""
    targets, selected = take_modules(config, base, by_layer=True)
    others = adapted_modules(selected, config, base)
    parameters = take_parameters(config, base)
    require_any([*targets, *others, *parameters], base)
    rank_of = take_by_module(config, "r", "rank_pattern", COUNT, 8)
    alpha_of = take_by_module(config, "lora_alpha", "alpha_pattern", NUMBER, 8)
    is_stabilized = config.take("use_rslora", FLAG, default=False)
    variant = take_variant(config, base)
    is_everywhere = variant.invocation is None
    may_train_biases = is_everywhere and variant.pool == 1 and not parameters
    bias = config.take("bias", _BIASES if may_train_biases else one_of("none"), default="none")
    trained = take_trainable_tokens(config, tensors, base) if is_everywhere else None
    _check_tokens(others, variant, trained)
    if parameters:
        _check_parameters(parameters, targets, variant, config)

    def scale_of(module: str) -> float:
        rank = rank_of(module)
        return alpha_of(module) / (math.sqrt(rank) if is_stabilized else rank)

    tokens = take_tokens(others, config, tensors, base, rank_of=rank_of, scale_of=scale_of)
    config.close("LORA", REST)

    tensors.require_known_modules()
    low_rank = {}
    # PEFT looks a parameter up in patterns by its own name, not its module's.
    names = {linear: base.linears[linear].module for linear in targets}
    names |= {linear: f"{base.linears[linear].module}.weight" for linear in parameters}
    for linear in (one for one in base.linears if one in names):
        rank, scale = rank_of(names[linear]), scale_of(names[linear])
        low_rank[linear] = _plan_linear(linear, tensors, base, variant, rank=rank, scale=scale)
    biases = _plan_biases(bias, low_rank, tensors, base)
    linears = tuple(linear for linear in base.linears if linear in low_rank or linear in biases)
    plan = LoraPlan(low_rank, biases, linears, variant.invocation)
    beside = trained or tokens
    return plan if beside is None else ReplacingPlan("LORA", beside, plan)


def _check_tokens(modules: Sequence[str], variant: LoraVariant, trained: ReplacedPlan | None) -> None:
    """That of the embedding and the output head only what they have of their own here is asked for."""
    if not modules:
        return
    if not variant.is_plain:
        raise InvalidAdapter("target_modules", f"selects {modules[0]}, which no variant of LORA adapts here")
    if trained is not None:
        raise InvalidAdapter("trainable_token_indices", f"expected null where target_modules selects {modules[0]}")


def _check_parameters(
    parameters: Sequence[LinearId], targets: Sequence[LinearId], variant: LoraVariant, config: Config
) -> None:
    """What PEFT asks of an adapter that names parameters."""
    if not variant.is_plain:
        raise InvalidAdapter("target_parameters", "expected none beside a variant of LORA: PEFT has them plain only")
    if both := set(parameters).intersection(targets):
        raise InvalidAdapter("target_parameters", f"selects {min(map(str, both))}, as target_modules does")
    why = "PEFT has no target_parameters with it"
    config.take("lora_dropout", one_of(0, 0.0).because(why), default=0.0)
    config.take("fan_in_fan_out", OFF.because(why), default=False)


def _plan_linear(
    linear: LinearId, tensors: Tensors, base: BaseShape, variant: LoraVariant, *, rank: int, scale: float
) -> _LinearPlan:
    shape = base.linears[linear]
    blocks = BlockCounts() if variant.blocks is None else variant.blocks.of(shape, rank)
    if variant.taken_out is not None:
        _check_taken_out(variant, shape, rank, scale)
    if shape.in_features % variant.pool:
        raise IncompatibleAdapter(
            "qalora_group_size", f"{variant.pool} does not divide {shape.in_features}, of {shape.module}"
        )
    of = f"{shape.module} of {base.name}"
    a = tensors.take_of(linear, "lora_A.weight", reason="target_modules selects its module")
    b = tensors.take_of(linear, "lora_B.weight", reason="target_modules selects its module")
    require_shape(a, (None, shape.in_features // (blocks.a * variant.pool)), of=of)
    require_shape(b, (shape.out_features, None), of=of)
    for entry, found in ((a, a.shape[0]), (b, b.shape[1] * blocks.b)):
        if found != rank:
            raise InvalidAdapter(entry.name, f"found rank {found}, expected {rank} by r and rank_pattern")

    def take_vector(suffix: str, size: int, *, if_: bool) -> TensorEntry | None:
        if not if_:
            return None
        vector = tensors.take_of(linear, suffix, reason="lora_bias or use_dora is true, or kasa_config is given")
        require_shape(vector, (size,), of=of)
        return vector

    idle = []
    for suffix, sizes in variant.idle_tensors(shape.in_features, rank).items():
        idle.append(tensors.take_of(linear, suffix, reason="velora_config or monteclora_config is given"))
        require_shape(idle[-1], sizes, of=of)

    return _LinearPlan(
        a,
        b,
        scale,
        blocks,
        added_bias=take_vector("lora_B.bias", shape.out_features, if_=variant.has_added_bias),
        row_norms=take_vector("lora_magnitude_vector", shape.out_features, if_=variant.has_norms),
        diagonal=take_vector("lora_diag", rank, if_=variant.is_kasa),
        taken_out=variant.taken_out,
        pool=variant.pool,
        idle=tuple(idle),
    )


def _check_taken_out(variant: LoraVariant, shape: LinearShape, rank: int, scale: float) -> None:
    """That PEFT could take it out."""
    most = min(shape.out_features, shape.in_features) - (1 if variant.is_kasa else 0)
    if rank > most:
        raise InvalidAdapter("r", f"expected at most {most} for {shape.module}, of whose weight a part is taken out")
    if variant.init == "pissa" and scale <= 0:
        raise InvalidAdapter("lora_alpha", f"expected more than 0 with pissa, found a scale of {scale}")


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
