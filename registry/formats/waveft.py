"""WAVEFT: y = (W + Δ) x + b, Δ the inverse Haar transform of a few coefficients at places drawn from a seed.

Or, without use_idwt, those numbers at those places as they are. Of PEFT's wavelets only db1, its default, is Haar's.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.dense import DensePlan
from hotshoe.registry.formats.module_values import take_by_module
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NUMBER, OFF, TEXT, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_weights": FLAG,
    "proportional_parameters": OFF,  # each linear's number by its size
}


@dataclass(frozen=True, slots=True)
class _Part:
    spectrum: TensorEntry  # [n]
    seed: int
    scale: float
    is_transformed: bool

    def update(self, linear: LinearId, read: Read, base: BaseWeights) -> "Tensor":
        import torch

        shape = base.shape.linears[linear]
        rows, columns = shape.out_features, shape.in_features
        places = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(self.seed))  # PEFT's draw
        places = places[: self.spectrum.num_elements]
        numbers = torch.zeros(rows + rows % 2, columns + columns % 2)
        numbers[places // columns, places % columns] = read(self.spectrum, scale=self.scale)
        return (_inverse_haar(numbers) if self.is_transformed else numbers)[:rows, :columns]


def _inverse_haar(coefficients: "Tensor") -> "Tensor":
    """One level: averages in the upper left quarter, differences of rows, of columns and of both in the others."""
    upper, lower = coefficients.chunk(2)
    (average, down), (across, both) = upper.chunk(2, dim=1), lower.chunk(2, dim=1)
    whole = coefficients.new_empty(coefficients.shape)
    whole[0::2, 0::2] = average + down + across + both
    whole[0::2, 1::2] = average + down - across - both
    whole[1::2, 0::2] = average - down + across - both
    whole[1::2, 1::2] = average - down - across + both
    return whole / 2


def plan_waveft(config: Config, tensors: Tensors, base: BaseShape) -> DensePlan:
    """The plan of a WAVEFT adapter; see `DenseFormat`."""
    targets = take_targets(config, base, by_layer=True)
    count_of = take_by_module(config, "n_frequency", "n_frequency_pattern", COUNT, 2592)
    scale = config.take("scaling", NUMBER, default=25.0)
    seed = config.take("random_loc_seed", INTEGER, default=777)
    is_transformed = config.take("use_idwt", FLAG, default=True)
    config.take("wavelet_family", one_of("db1") if is_transformed else TEXT, default="db1")
    config.close("WAVEFT", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        count = count_of(shape.module)
        if count > shape.out_features * shape.in_features:
            raise InvalidAdapter("n_frequency", f"found {count}, more than {shape.module} of {base.name} has numbers")
        spectrum = tensors.take_of(linear, "waveft_spectrum", reason="target_modules selects its module")
        require_shape(spectrum, (count,), of=f"n_frequency at {shape.module}")
        parts[linear] = _Part(spectrum, seed, scale, is_transformed)
    return DensePlan("WAVEFT", parts)
