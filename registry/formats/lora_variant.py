"""Which of its variants a LORA is: what its config says of every linear alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lora_blocks import LoraBlocks, take_blocks
from hotshoe.registry.formats.peft_config import (
    FLAG,
    INTEGER,
    NULL,
    NUMBER,
    Config,
    Rule,
    either,
    list_of,
    object_of,
    one_of,
)
from hotshoe.registry.formats.taken_out import REFUSED_INITS, TAKING_INITS, TakenOut, minor_part

_PLAIN_INITS = (True, False)
_INITS = (*_PLAIN_INITS, "gaussian", "eva", "orthogonal")
_KASA = object_of({"beta": NUMBER, "gamma": NUMBER})  # of training only


@dataclass(frozen=True, slots=True)
class LoraVariant:
    """PEFT has at most one of the first four."""

    invocation: tuple[int, ...] | None
    blocks: LoraBlocks | None
    is_kasa: bool
    has_norms: bool
    has_added_bias: bool
    init: str | bool

    @property
    def taken_out(self) -> TakenOut | None:
        return minor_part if self.is_kasa else TAKING_INITS.get(str(self.init))


def take_variant(config: Config, base: BaseShape) -> LoraVariant:
    """Takes the fields that tell."""
    invocation = config.take("alora_invocation_tokens", either(NULL, list_of(INTEGER)), default=None)
    if invocation is not None:
        _check_invocation(invocation, base)
    blocks = take_blocks(config) if invocation is None else None
    is_kasa = (
        invocation is None
        and blocks is None
        and config.take("kasa_config", either(NULL, _KASA), default=None) is not None
    )
    is_ordinary = invocation is None and blocks is None and not is_kasa
    has_norms = config.take("use_dora", FLAG if is_ordinary else one_of(False), default=False)
    may_add = invocation is not None or (is_ordinary and not has_norms)
    has_added_bias = config.take("lora_bias", FLAG if may_add else one_of(False), default=False)
    inits: tuple[str | bool, ...] = _PLAIN_INITS if has_added_bias else _INITS
    if is_ordinary and not has_added_bias:
        inits = (*inits, *TAKING_INITS) if has_norms else (*inits, *TAKING_INITS, "mica")  # mica tells how B began
    init = config.take("init_lora_weights", _init_rule(config, inits), default=True)
    tokens = None if invocation is None else tuple(invocation)
    return LoraVariant(tokens, blocks, is_kasa, has_norms, has_added_bias, init)


def _init_rule(config: Config, allowed: Sequence[str | bool]) -> Rule[str | bool]:
    """Those values, and why the one that stands there is refused if it is of those that always are."""
    name = str(config.peek("init_lora_weights"))
    why = next((why for start, why in REFUSED_INITS.items() if name.startswith(start)), "")
    return one_of(*allowed).because(why)


def _check_invocation(token_ids: Sequence[int], base: BaseShape) -> None:
    if not token_ids or max(token_ids) >= base.vocab_size:
        raise InvalidAdapter(
            "alora_invocation_tokens", f"expected token ids below {base.vocab_size}, one at least, found {token_ids}"
        )
