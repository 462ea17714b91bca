"""Which of its variants a LORA is: what its config says of every linear alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lora_blocks import LoraBlocks, take_blocks
from hotshoe.registry.formats.peft_config import (
    COUNT,
    FLAG,
    INTEGER,
    NULL,
    NUMBER,
    OFF,
    Config,
    Rule,
    either,
    list_of,
    object_of,
    one_of,
)
from hotshoe.registry.formats.taken_out import REFUSED_INITS, TAKING_INITS, TakenOut, minor_part

_PLAIN_INITS = (True, False, None)
_INITS = (*_PLAIN_INITS, "gaussian", "eva", "orthogonal")
# Variants by the field that holds what they are told, most of it of training only.
_OBJECTS: Mapping[str, Rule[Mapping[str, object]]] = {
    "kasa_config": object_of({"beta": NUMBER, "gamma": NUMBER}),
    "velora_config": object_of(
        {
            "num_groups": COUNT,
            "scale": NUMBER,
            "init_type": one_of("batch_average", "batch_average_once", "random"),
        }
    ),
    "monteclora_config": object_of(
        {
            "num_samples": COUNT,
            "use_entropy": FLAG,
            "dirichlet_prior": NUMBER,
            "sample_scaler": NUMBER,
            "kl_loss_weight": NUMBER,
            "buffer_size": COUNT,
        }
    ),
}


@dataclass(frozen=True, slots=True)
class LoraVariant:
    """PEFT has at most one of the first six, which all but `has_norms` exclude `has_norms`."""

    invocation: tuple[int, ...] | None
    blocks: LoraBlocks | None
    is_kasa: bool
    num_groups: int | None  # of inputs in VeLoRA, whose backward pass keeps one number for each
    num_samples: int | None  # of A in MonteCLoRA, which it mixes in training
    pool: int  # neighbouring inputs that QALoRA's A sees as one; 1 elsewhere
    has_norms: bool
    has_added_bias: bool
    init: str | bool | None

    @property
    def taken_out(self) -> TakenOut | None:
        return minor_part if self.is_kasa else TAKING_INITS.get(str(self.init))

    @property
    def is_plain(self) -> bool:
        """Whether a linear is W x + s B A x under it, and nothing else."""
        has_parts = self.invocation is not None or self.blocks is not None or self.is_kasa or self.pool > 1
        is_trained_otherwise = self.num_groups is not None or self.num_samples is not None or self.init not in _INITS
        return not (has_parts or is_trained_otherwise or self.has_norms or self.has_added_bias)

    def idle_tensors(self, in_features: int, rank: int) -> Mapping[str, tuple[int, ...]]:
        """Shapes by name of what training leaves in the file of a linear, and no forward pass of inference reads."""
        if self.num_groups is not None:
            return {"lora_velora_embed": (-(-in_features // self.num_groups),)}
        if self.num_samples is not None:
            sampler = "lora_monteclora_sampler"
            return {
                f"{sampler}.std_prior": (rank,),
                f"{sampler}.gaussian_var_prior": (rank, rank),
                f"{sampler}.expert_weights": (self.num_samples,),
                f"{sampler}.expert_weights_prior": (self.num_samples,),
            }
        return {}


def take_variant(config: Config, base: BaseShape) -> LoraVariant:
    """Takes the fields that tell."""
    invocation = config.take("alora_invocation_tokens", either(NULL, list_of(INTEGER)), default=None)
    if invocation is not None:
        _check_invocation(invocation, base)
    blocks = take_blocks(config) if invocation is None else None
    found = None if invocation is not None or blocks is not None else _take_object(config)
    is_ordinary = invocation is None and blocks is None and found is None
    pool = _take_pool(config) if is_ordinary else 1
    is_ordinary = is_ordinary and pool == 1
    has_norms = config.take("use_dora", FLAG if is_ordinary else OFF, default=False)
    field, told = found or ("", {})
    may_add = (
        invocation is not None or (is_ordinary and not has_norms) or field in ("velora_config", "monteclora_config")
    )
    has_added_bias = config.take("lora_bias", FLAG if may_add else OFF, default=False)
    inits: tuple[str | bool | None, ...] = _PLAIN_INITS if has_added_bias else _INITS
    if is_ordinary and not has_added_bias:
        inits = (*inits, *TAKING_INITS) if has_norms else (*inits, *TAKING_INITS, "mica")  # mica tells how B began
    init = config.take("init_lora_weights", _init_rule(config, inits), default=True)
    tokens = None if invocation is None else tuple(invocation)
    return LoraVariant(
        tokens,
        blocks,
        is_kasa=field == "kasa_config",
        num_groups=int(told.get("num_groups", 64)) if field == "velora_config" else None,
        num_samples=int(told.get("num_samples", 8)) if field == "monteclora_config" else None,
        pool=pool,
        has_norms=has_norms,
        has_added_bias=has_added_bias,
        init=init,
    )


def _take_object(config: Config) -> tuple[str, Mapping[str, Any]] | None:
    """The field of `_OBJECTS` that is set, and what it says; the others are left, and must be null."""
    for field, rule in _OBJECTS.items():
        told = config.take(field, either(NULL, rule), default=None)
        if told is not None:
            return field, told
    return None


def _take_pool(config: Config) -> int:
    """QALoRA's group size; 1 if it is none."""
    if not config.take("use_qalora", FLAG, default=False):
        return 1
    return config.take("qalora_group_size", COUNT, default=16)


def _init_rule(config: Config, allowed: Sequence[str | bool | None]) -> Rule[str | bool | None]:
    """Those values, and why the one that stands there is refused if it is of those that always are."""
    name = str(config.peek("init_lora_weights"))
    why = next((why for start, why in REFUSED_INITS.items() if name.startswith(start)), "")
    return one_of(*allowed).because(why)


def _check_invocation(token_ids: Sequence[int], base: BaseShape) -> None:
    if not token_ids or max(token_ids) >= base.vocab_size:
        raise InvalidAdapter(
            "alora_invocation_tokens", f"expected token ids below {base.vocab_size}, one at least, found {token_ids}"
        )
