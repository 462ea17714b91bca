"""Rotary embedding from a config: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""

import math
from collections.abc import Mapping
from typing import Any

from hotshoe.server.errors import UnsupportedModel
from hotshoe.server.model.config_fields import flag, number, section, spelled
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
}


def rope_from_config(config: Mapping[str, Any], *, max_positions: int) -> RopeSpec:
    """The rotary embedding that transformers would compute once for a model.

    Raises:
        UnsupportedModel: a type whose frequencies change with the sequence (dynamic, longrope), or an unknown field.
    """
    parameters = section(config, "rope_parameters") or section(config, "rope_scaling")
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise UnsupportedModel(f"rope_type: {spelled(kind)} is not served here; known are {', '.join(sorted(_FIELDS))}")
    unknown = sorted(name for name in parameters if name not in _FIELDS[kind] | _COMMON)
    if unknown:
        raise UnsupportedModel(f"rope_parameters: {kind} with {', '.join(unknown)} is not served here")
    partial = number(parameters, "partial_rotary_factor", number(config, "partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UnsupportedModel(f"partial_rotary_factor: only 1.0 is served here, not {partial}")
    theta = number(parameters, "rope_theta", number(config, "rope_theta", 10_000.0), above=0.0)
    if kind == "default":
        return RopeSpec(theta=theta)
    return _scaled(kind, parameters, config, theta=theta, max_positions=max_positions)


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
