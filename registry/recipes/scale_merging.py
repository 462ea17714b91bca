"""New scales of inputs and outputs from several adapters', number by number.

space=delta       1 + Σ wᵢ (lᵢ − 1), as a stack of the adapters with these weights computes it
space=geometric   exp(Σ wᵢ log lᵢ), of scales above 0: the product of powers

A scale that an adapter does not have is 1. In both, weights are what they are of their sum if `normalize`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.validation import Pause, go_on

if TYPE_CHECKING:
    from torch import Tensor

_NONE = LoweredLinear()


class Scales(NamedTuple):
    """Merged scales by linear, float32; no linear has both."""

    inputs: "Mapping[LinearId, Tensor]"  # [in_features]
    outputs: "Mapping[LinearId, Tensor]"  # [out_features]


def merge_scales(
    adapters: Sequence[LoweredAdapter],
    weights: Sequence[float],
    parameters: MergeParameters,
    base: BaseShape,
    *,
    pause: Pause = go_on,
) -> Scales:
    """Merges adapters of `Subject.SCALES`; `pause` is called before each linear.

    Raises:
        InvalidAdapter: a linear would have two scales, or a scale has no logarithm.
    """
    shares = parameters.shares(weights)
    inputs, outputs = {}, {}
    for linear in base.linears:
        pause()
        found = [adapter.linears.get(linear, _NONE) for adapter in adapters]
        into = [(part.input_scale, share) for part, share in zip(found, shares, strict=True)]
        out = [(part.output_scale, share) for part, share in zip(found, shares, strict=True)]
        if (scale := _merged(into, parameters.space, linear)) is not None:
            inputs[linear] = scale
        if (scale := _merged(out, parameters.space, linear)) is not None:
            outputs[linear] = scale
        if linear in inputs and linear in outputs:
            raise InvalidAdapter(
                "sources", f"one scales the inputs of {linear} and another its outputs, and no IA3 adapter does both"
            )
    return Scales(inputs, outputs)


def merged_scale(scales: "Sequence[tuple[Tensor | None, float]]") -> "Tensor | None":
    """1 + Σ w (l − 1), float64; None if there is no l."""
    terms = [share * (scale.double() - 1) for scale, share in scales if scale is not None]
    return 1 + sum(terms[1:], start=terms[0]) if terms else None


def _merged(scales: "Sequence[tuple[Tensor | None, float]]", space: str, linear: LinearId) -> "Tensor | None":
    if space != "geometric":
        merged = merged_scale(scales)
        return None if merged is None else merged.float()
    terms = []
    for scale, share in scales:
        if scale is None:
            continue
        if not bool((scale > 0).all()):
            raise InvalidAdapter("parameters.space", f"expected delta: a scale of {linear} is not above 0")
        terms.append(share * scale.double().log())
    return sum(terms[1:], start=terms[0]).exp().float() if terms else None
