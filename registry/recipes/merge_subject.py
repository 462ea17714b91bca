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
_REPLACED = frozenset({"norms", "embedding_rows", "head_rows", "embedding_update", "head_update"})


class Subject(StrEnum):
    """What each adapter consists of, and of nothing else. An adapter may be several; the first is the narrowest."""

    UPDATES = "low-rank updates"
    SCALES = "scales"  # of inputs and of outputs, those of a bias with it: IA3
    SCALED_UPDATES = "low-rank updates and output scales"  # either may be missing: DoRA
    PARTS = "weights, biases, norms and embedding rows"  # any of these: SCALED_UPDATES and `replacements`
    FULL_UPDATES = "updates of full rank"  # whatever acts on weights, beside biases, norms and rows: OFT
    PREFIXES = "prefixes"  # keys and values
    PROMPTS = "soft prompts"  # embeddings
    BOTTLENECKS = "bottlenecks"  # networks beside blocks


def subjects_in_common(adapters: Sequence[LoweredAdapter], base: BaseWeights) -> list[Subject]:
    """The subjects of all adapters, one at least; else raises InvalidAdapter, naming what is in the way."""
    found = [_subjects(adapter, base) for adapter in adapters]
    if common := [subject for subject in Subject if all(subject in subjects for subjects in found)]:
        return common
    kinds = ", ".join(f"{adapter.kind} of {subjects[0]}" for adapter, subjects in zip(adapters, found, strict=True))
    raise InvalidAdapter("sources", f"expected adapters of one sort, found {kinds}; a request can stack these")


def _subjects(adapter: LoweredAdapter, base: BaseWeights) -> list[Subject]:
    """What an adapter is, one at least."""
    others = {name for name in unmergeable_parts(adapter).split(", ") if name}
    if not adapter.linears and others in ({"kv_prefix"}, {"prompt_embeddings"}):
        return [Subject.PREFIXES if others == {"kv_prefix"} else Subject.PROMPTS]
    if not adapter.linears and others == {"bottlenecks"}:
        return [Subject.BOTTLENECKS]
    if others - _REPLACED or not (adapter.linears or others):
        names = ", ".join(sorted(others - _REPLACED))
        raise InvalidAdapter(names or "linears", f"cannot be merged, as this {adapter.kind} would have to be")
    found = frozenset().union(*map(parts, adapter.linears.values()))
    subjects = []
    if not others:
        if found <= _FACTORS and all(linear.a is not None for linear in adapter.linears.values()):
            subjects.append(Subject.UPDATES)
        if found <= _SCALES and all(_scales_bias(linear, base.bias(name)) for name, linear in adapter.linears.items()):
            subjects.append(Subject.SCALES)
        if found <= _SCALED_FACTORS:
            subjects.append(Subject.SCALED_UPDATES)
    if found <= _SCALED_FACTORS | {"bias_delta"}:
        subjects.append(Subject.PARTS)
    return [*subjects, Subject.FULL_UPDATES]


def _scales_bias(linear: LoweredLinear, bias: "Tensor | None") -> bool:
    """Whether a linear's output scale acts on its bias, too, as IA3's does, and nothing else does."""
    import torch

    if linear.output_scale is None or bias is None:
        return linear.bias_delta is None
    return linear.bias_delta is not None and torch.equal(linear.bias_delta, (linear.output_scale - 1) * bias)
