"""What an adapter adds to a base weight, as one matrix; and which adapters consist of nothing else, or of less."""

from dataclasses import fields
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear

if TYPE_CHECKING:
    from torch import Tensor

SCALES = frozenset({"input_scale", "output_scale"})
_FACTORS = frozenset({"a", "b", "scale"})
_LOW_RANK = frozenset({"a", "b", "bias_delta", "scale"})
_OF_ADAPTER = frozenset({"kind", "linears"})


def dense_update(linear: LoweredLinear, weight: "Tensor") -> "Tensor | None":
    """Δ of y = (W + Δ) x + b, [out_features, in_features] float32; None if only the bias changes.

    The linear must have no `other_parts`.
    """
    update = None
    if linear.a is not None and linear.b is not None:
        update = linear.b @ linear.a
    if linear.input_scale is not None or linear.output_scale is not None:
        scaled = weight
        if linear.output_scale is not None:
            scaled = linear.output_scale[:, None] * scaled
        if linear.input_scale is not None:
            scaled = scaled * linear.input_scale
        update = scaled - weight if update is None else scaled - weight + update
    return update


def parts(linear: LoweredLinear) -> frozenset[str]:
    """The names of the parts that are there."""
    return frozenset(field.name for field in fields(linear) if getattr(linear, field.name) is not None)


def other_parts(linear: LoweredLinear) -> str:
    """Names of the parts that are neither a low-rank update, nor a scale, nor a bias; "" if there is none."""
    return ", ".join(sorted(parts(linear) - _LOW_RANK - SCALES))


def unmergeable_parts(adapter: LoweredAdapter) -> str:
    """Names of all that cannot be added to a base's weights and biases; "" if all of it can."""
    names = {field.name for field in fields(adapter) if field.name not in _OF_ADAPTER and _is_set(adapter, field.name)}
    names |= {name for linear in adapter.linears.values() for name in other_parts(linear).split(", ") if name}
    return ", ".join(sorted(names))


def require_low_rank(adapter: LoweredAdapter, *, to: str) -> None:
    """Raises InvalidAdapter, naming what else there is, unless an adapter is low-rank updates and nothing else.

    `to`: what is not possible then, "be merged".
    """
    names = {name for name in unmergeable_parts(adapter).split(", ") if name}
    for linear in adapter.linears.values():
        names |= parts(linear) - _FACTORS
        if linear.a is None or linear.b is None:
            names.add("a linear without a low-rank update")
    if names or not adapter.linears:
        found = ", ".join(sorted(names)) or "linears"
        raise InvalidAdapter(found, f"only an adapter of low-rank updates alone can {to}, not this {adapter.kind}")


def _is_set(adapter: LoweredAdapter, name: str) -> bool:
    value = getattr(adapter, name)
    return value is not None and (hasattr(value, "shape") or bool(value))
