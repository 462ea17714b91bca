"""Rotary embedding from a config: `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""

import math
from collections.abc import Mapping
from typing import Any

from hotshoe.server.errors import UnsupportedModel
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
    parameters = {k: v for k, v in (config.get("rope_parameters") or config.get("rope_scaling") or {}).items()}
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in _FIELDS:
        raise UnsupportedModel(f"rope_type: {kind} is not served here; known are {', '.join(sorted(_FIELDS))}")
    unknown = sorted(name for name in parameters if name not in _FIELDS[kind] | _COMMON)
    if unknown:
        raise UnsupportedModel(f"rope_parameters: {kind} with {', '.join(unknown)} is not served here")
    partial = _number(parameters, "partial_rotary_factor", _number(config, "partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise UnsupportedModel(f"partial_rotary_factor: only 1.0 is served here, not {partial}")
    theta = _number(parameters, "rope_theta", _number(config, "rope_theta", 10_000.0))
    if kind == "default":
        return RopeSpec(theta=theta)
    return _scaled(kind, parameters, config, theta=theta, max_positions=max_positions)


def _scaled(
    kind: str, parameters: Mapping[str, Any], config: Mapping[str, Any], *, theta: float, max_positions: int
) -> RopeSpec:
    original = _number(parameters, "original_max_position_embeddings", float(max_positions))
    original = _number(config, "original_max_position_embeddings", original)  # wins, as in transformers
    default_factor = max_positions / original if kind == "yarn" else None
    factor = _number(parameters, "factor", default_factor)
    if kind == "linear":
        return RopeSpec(theta=theta, type=kind, factor=factor)
    if kind == "llama3":
        return RopeSpec(
            theta=theta,
            type=kind,
            factor=factor,
            original_max_positions=int(original),
            low_freq_factor=_number(parameters, "low_freq_factor", None),
            high_freq_factor=_number(parameters, "high_freq_factor", None),
        )
    return RopeSpec(
        theta=theta,
        type=kind,
        factor=factor,
        original_max_positions=int(original),
        beta_fast=_number(parameters, "beta_fast", 32.0) or 32.0,
        beta_slow=_number(parameters, "beta_slow", 1.0) or 1.0,
        truncate=bool(parameters.get("truncate", True)),
        attention_factor=_yarn_attention_factor(parameters, factor),
    )


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    def temperature(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    if parameters.get("attention_factor") is not None:
        return _number(parameters, "attention_factor", None)
    mscale, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    return temperature(mscale) / temperature(all_dim) if mscale and all_dim else temperature(1.0)


def _number(config: Mapping[str, Any], name: str, default: float | None) -> float:
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise UnsupportedModel(f"{name}: expected a number, not {value!r}")
    return float(value)
