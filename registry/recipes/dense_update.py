"""What an adapter adds to a base weight, as one matrix; and which adapters consist of nothing else, or of less."""

from dataclasses import fields
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear

if TYPE_CHECKING:
    from torch import Tensor

# What acts on W itself.
OF_WEIGHT = frozenset({"input_scale", "input_rotation", "output_scale", "output_swap", "copies"})
_FACTORS = frozenset({"a", "b", "scale"})
_LOW_RANK = frozenset({"a", "b", "bias_delta", "scale"})
_OF_ADAPTER = frozenset({"kind", "linears", "approximation"})


def dense_update(linear: LoweredLinear, weight: "Tensor") -> "Tensor | None":
    """Δ of y = (W + Δ) x + b, [out_features, in_features] float32; None if only the bias changes.

    The linear must have no `other_parts`.
    """
    update = None
    if (factors := linear.factors) is not None:
        a, b = factors
        update = b @ a
    if parts(linear) & OF_WEIGHT:
        changed = _changed(linear, weight) - weight
        update = changed if update is None else changed + update
    return update


def _changed(linear: LoweredLinear, weight: "Tensor") -> "Tensor":
    """W as it stands between what a linear does to its inputs and to its outputs."""
    original = weight
    if linear.input_rotation is not None:
        blocks = weight.reshape(weight.shape[0], *linear.input_rotation.shape[:2])
        weight = (blocks[:, :, None] @ linear.input_rotation.mT)[:, :, 0].flatten(1)
    if linear.input_scale is not None:
        weight = weight * linear.input_scale
    changed = weight if linear.output_scale is None else linear.output_scale[:, None] * weight
    if linear.output_swap is not None:
        changed = changed + linear.output_swap.gains[:, None] * weight[linear.output_swap.partners]
    if linear.copies is not None:
        changed = changed + original * (linear.copies.outputs.T @ linear.copies.inputs)
    return changed


def parts(linear: LoweredLinear) -> frozenset[str]:
    """The names of the parts that are there."""
    return frozenset(field.name for field in fields(linear) if getattr(linear, field.name) is not None)


def other_parts(linear: LoweredLinear) -> str:
    """Names of the parts that are neither a low-rank update, nor act on W itself, nor a bias; "" if there is none."""
    return ", ".join(sorted(parts(linear) - _LOW_RANK - OF_WEIGHT))


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
