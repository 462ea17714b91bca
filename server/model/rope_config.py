"""Rotary embedding from a config: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.config_fields import flag, integer, number, numbers, section, spelled
from hotshoe.server.model.spec import RopeSpec

_COMMON = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
# per type: the fields that may be set; "factor" must be, where it is listed
_FIELDS: Mapping[str, set[str]] = {
    "default": {"factor", "original_max_position_embeddings"},
    "linear": {"factor", "original_max_position_embeddings"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {
        "factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
    "longrope": {"factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"},
}


@dataclass(frozen=True, slots=True)
class RopeRules:
    """Which rotary embeddings a family has."""

    types: frozenset[str] = frozenset({"default", "linear", "llama3", "yarn"})
    others: Mapping[str, str] = field(default_factory=dict)  # what it calls types, too
    partial: bool = False  # it may turn a part of each head only
    original_max_positions: int | None = None  # where the config says nothing; None is max_position_embeddings


PHI3_ROPES = RopeRules(
    frozenset({"default", "longrope"}),
    others={"su": "longrope", "yarn": "longrope"},
    partial=True,
    original_max_positions=4096,
)


def rope_from_config(config: Mapping[str, Any], rules: RopeRules, *, head_dim: int, max_positions: int) -> RopeSpec:
    """The rotary embedding that transformers would compute for a model.

    Raises:
        UnsupportedModel: a type that the family does not have, or an unknown field.
    """
    parameters = section(config, "rope_parameters") or section(config, "rope_scaling")
    named = parameters.get("rope_type") or parameters.get("type") or "default"
    kind = rules.others.get(named, named) if isinstance(named, str) else None
    if kind not in rules.types:
        known = ", ".join(sorted(rules.types))
        raise UnsupportedModel(f"rope_type: {spelled(named)} is not served here; known are {known}")
    unknown = sorted(name for name in parameters if name not in _FIELDS[kind] | _COMMON)
    if unknown:
        raise UnsupportedModel(f"rope_parameters: {kind} with {', '.join(unknown)} is not served here")
    share = number(parameters, "partial_rotary_factor", number(config, "partial_rotary_factor", 1.0))
    _check_share(share, rules, head_dim)
    theta = number(parameters, "rope_theta", number(config, "rope_theta", 10_000.0), above=0.0)
    if kind == "default":
        return RopeSpec(theta=theta, share=share)
    if kind == "longrope":
        return _long(parameters, config, rules, RopeSpec(theta, kind, share), head_dim, max_positions)
    return _scaled(kind, parameters, config, theta=theta, max_positions=max_positions)


def ropes_by_type(
    config: Mapping[str, Any], rules: RopeRules, *, head_dim: int, max_positions: int
) -> tuple[RopeSpec, RopeSpec]:
    """The rotary embeddings of layers that see everything, and of those with a window, as Gemma 3 spells them.

    Raises:
        UnsupportedModel: as `rope_from_config`.
    """
    kinds = {"full_attention": ("rope_theta", 1e6), "sliding_attention": ("rope_local_base_freq", 1e4)}
    parameters = section(config, "rope_parameters")
    if unknown := sorted(parameters.keys() - kinds.keys()):
        raise UnsupportedModel(f"rope_parameters: expected {' and '.join(kinds)}, not {spelled(', '.join(unknown))}")
    others = {name: value for name, value in config.items() if not name.startswith("rope_")}
    found = []
    for kind, (name, default) in kinds.items():
        own = section(parameters, kind)
        if kind == "full_attention":
            own |= section(config, "rope_scaling")
        own.setdefault("rope_theta", number(config, name, default, above=0.0))
        whole = {**others, "rope_parameters": own}
        found.append(rope_from_config(whole, rules, head_dim=head_dim, max_positions=max_positions))
    return found[0], found[1]


def _check_share(share: float, rules: RopeRules, head_dim: int) -> None:
    if share != 1.0 and not rules.partial:
        raise UnsupportedModel(f"partial_rotary_factor: only 1.0 is served here, not {share}")
    turned = int(head_dim * share) if share <= 1 else 0
    if turned < 2 or turned % 2:
        wanted = f"an even number of a head's {head_dim} dimensions"
        raise UnsupportedModel(f"partial_rotary_factor: expected the share of {wanted}, not {share}")


def _long(
    parameters: Mapping[str, Any],
    config: Mapping[str, Any],
    rules: RopeRules,
    plain: RopeSpec,
    head_dim: int,
    max_positions: int,
) -> RopeSpec:
    """Sequences of up to `original` positions are turned by the short factors, longer ones by the long factors."""
    original = integer(config, "original_max_position_embeddings", rules.original_max_positions, minimum=2)
    factor = number(parameters, "factor", max_positions / original)
    strength = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    count = plain.rotary_dim(head_dim) // 2
    return RopeSpec(
        theta=plain.theta,
        type=plain.type,
        share=plain.share,
        factor=factor,
        original_max_positions=original,
        short_factors=numbers(parameters, "short_factor", count),
        long_factors=numbers(parameters, "long_factor", count),
        attention_factor=number(parameters, "attention_factor", strength),
    )


def _scaled(
    kind: str, parameters: Mapping[str, Any], config: Mapping[str, Any], *, theta: float, max_positions: int
) -> RopeSpec:
    original = number(parameters, "original_max_position_embeddings", float(max_positions), above=0.0)
    original = number(config, "original_max_position_embeddings", original, above=0.0)  # wins, as in transformers
    default_factor = max_positions / original if kind == "yarn" else None
    factor = number(parameters, "factor", default_factor, above=0.0)
    if kind == "linear":
        return RopeSpec(theta=theta, type=kind, factor=factor)
    if kind == "llama3":
        low = number(parameters, "low_freq_factor", None, above=0.0)
        return RopeSpec(
            theta=theta,
            type=kind,
            factor=factor,
            original_max_positions=int(original),
            low_freq_factor=low,
            high_freq_factor=number(parameters, "high_freq_factor", None, above=low),
        )
    if theta <= 1:
        raise UnsupportedModel(f"rope_theta: expected a number above 1 with yarn, not {theta:g}")
    return RopeSpec(
        theta=theta,
        type=kind,
        factor=factor,
        original_max_positions=int(original),
        beta_fast=number(parameters, "beta_fast", 32.0) or 32.0,
        beta_slow=number(parameters, "beta_slow", 1.0) or 1.0,
        truncate=flag({"truncate": True, **parameters}, "truncate"),
        attention_factor=_yarn_attention_factor(parameters, factor),
    )


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return number(parameters, "attention_factor", None)
    mscale, all_dim = number(parameters, "mscale", 0.0), number(parameters, "mscale_all_dim", 0.0)
    return temperature(mscale) / temperature(all_dim) if mscale and all_dim else temperature(1.0)
