"""New low-rank updates and output scales from several adapters', with the coefficients cᵢ of `linear`:

    g = 1 + Σ cᵢ (gᵢ − 1),  B A = Σ cᵢ Bᵢ Aᵢ

as a stack of the adapters computes it. No PEFT kind holds the two apart. LORA with use_dora holds the norm m of each
row of g ∘ (W + B' A), with B' = B / g, and whoever reads it finds g again as m over the norm of W + B' A. Where that
gives g and B in float32, it is the merge; where a scale is too near 0 for it, there is none.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseWeights, LinearId
from hotshoe.registry.formats.lora import row_norms
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes.factors import Factors
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.recipes.merging import merge
from hotshoe.registry.recipes.scale_merging import merged_scale
from hotshoe.registry.validation import Pause, go_on

if TYPE_CHECKING:
    from torch import Tensor

_NONE = LoweredLinear()
_ROWS = 1024  # at a time: in float64, all of a W is large
_EXACT = 1e-5  # of each output: what sums of float32 over a row lose


class ScaledMerge(NamedTuple):
    """A merge as LORA with use_dora has it."""

    updates: Mapping[LinearId, Factors]  # with B', of rank 1 at least
    norms: "Mapping[LinearId, Tensor]"  # m, [out_features] float32
    energy_kept: float  # of B A, as `Merge` has it
    size: float = 0.0  # the same


def merge_scaled(
    adapters: Sequence[LoweredAdapter],
    weights: Sequence[float],
    parameters: MergeParameters,
    base: BaseWeights,
    *,
    pause: Pause = go_on,
) -> ScaledMerge:
    """Merges adapters of `Subject.SCALED_UPDATES`; `pause` is called before each linear, twice.

    Raises:
        InvalidAdapter: an output of a linear has no norm from which its scale could be found again.
    """
    merged = merge(adapters, weights, parameters, base, pause=pause)
    shares = parameters.shares(weights)
    updates, norms = {}, {}
    for linear, factors in merged.updates.items():
        pause()
        parts = [adapter.linears.get(linear, _NONE).output_scale for adapter in adapters]
        scale = merged_scale(list(zip(parts, shares, strict=True)))
        updates[linear], norms[linear] = _with_norms(linear, factors, scale, base.weight(linear))
    return ScaledMerge(updates, norms, merged.energy_kept, merged.size)


def _with_norms(
    linear: LinearId, factors: Factors, scale: "Tensor | None", weight: "Tensor"
) -> "tuple[Factors, Tensor]":
    import torch

    a, b = factors
    if not a.shape[0]:
        a, b = torch.zeros(1, weight.shape[1]), torch.zeros(weight.shape[0], 1)
    if scale is None:
        scale = torch.ones(weight.shape[0], dtype=torch.float64)
    gain = scale[:, None]
    unscaled = torch.where(gain == 0, 0.0, b.double() / torch.where(gain == 0, 1.0, gain)).float()
    own = [
        row_norms(weight[start : start + _ROWS].double(), a.double(), unscaled[start : start + _ROWS].double())
        for start in range(0, weight.shape[0], _ROWS)
    ]
    norms = (scale * torch.cat(own)).float()
    found = norms / row_norms(weight, a, unscaled)  # as a reader does it
    kept = (found - scale).abs() <= _EXACT * scale.abs()
    kept &= (found[:, None] * unscaled - b).abs().amax(1) <= _EXACT * b.abs().amax(1)
    if not bool(kept.all()):
        row = int(kept.int().argmin())
        raise InvalidAdapter(
            "sources",
            f"the scale of output {row} of {linear} would be {float(scale[row]):.3g}, beside an update that is not "
            "as small: no PEFT kind holds both apart, and the norms of use_dora lose too much there",
        )
    return Factors(a, unscaled), norms
