"""What several adapters have in common that a merge can be of."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseWeights
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes.dense_update import parts, unmergeable_parts

if TYPE_CHECKING:
    from torch import Tensor

_FACTORS = frozenset({"a", "b", "scale"})
_SCALED_FACTORS = _FACTORS | {"output_scale"}
_SCALES = frozenset({"input_scale", "output_scale", "bias_delta"})


class Subject(StrEnum):
    """What each adapter consists of, and of nothing else. An adapter may be several; a merge is of the first."""

    UPDATES = "low-rank updates"
    SCALES = "scales"  # of inputs and of outputs, those of a bias with it: IA3
    SCALED_UPDATES = "low-rank updates and output scales"  # either may be missing: DoRA
    PREFIXES = "prefixes"  # keys and values
    PROMPTS = "soft prompts"  # embeddings


def subject_of(adapters: Sequence[LoweredAdapter], base: BaseWeights) -> Subject:
    """Raises InvalidAdapter, naming what is in the way, unless the adapters have a subject in common."""
    found = [_subjects(adapter, base) for adapter in adapters]
    for subject in Subject:
        if all(subject in subjects for subjects in found):
            return subject
    kinds = ", ".join(f"{adapter.kind} of {subjects[0]}" for adapter, subjects in zip(adapters, found, strict=True))
    raise InvalidAdapter("sources", f"expected adapters of one sort, found {kinds}; a request can stack these")


def _subjects(adapter: LoweredAdapter, base: BaseWeights) -> list[Subject]:
    """What an adapter is, one at least."""
    others = unmergeable_parts(adapter)
    if not adapter.linears and others in ("kv_prefix", "prompt_embeddings"):
        return [Subject.PREFIXES if others == "kv_prefix" else Subject.PROMPTS]
    if others or not adapter.linears:
        raise InvalidAdapter(others or "linears", f"cannot be merged, as this {adapter.kind} would have to be")
    found = frozenset().union(*map(parts, adapter.linears.values()))
    subjects = []
    if found <= _FACTORS and all(linear.a is not None for linear in adapter.linears.values()):
        subjects.append(Subject.UPDATES)
    if found <= _SCALES and all(_scales_bias(linear, base.bias(name)) for name, linear in adapter.linears.items()):
        subjects.append(Subject.SCALES)
    if found <= _SCALED_FACTORS:
        subjects.append(Subject.SCALED_UPDATES)
    if not subjects:
        raise InvalidAdapter(
            ", ".join(sorted(found - _SCALED_FACTORS)),
            f"cannot be merged: expected low-rank updates and output scales, or scales alone, in this {adapter.kind}",
        )
    return subjects


def _scales_bias(linear: LoweredLinear, bias: "Tensor | None") -> bool:
    """Whether a linear's output scale acts on its bias, too, as IA3's does, and nothing else does."""
    import torch

    if linear.output_scale is None or bias is None:
        return linear.bias_delta is None
    return linear.bias_delta is not None and torch.equal(linear.bias_delta, (linear.output_scale - 1) * bias)
