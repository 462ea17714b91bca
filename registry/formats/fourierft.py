"""FOURIERFT: y = (W + Δ) x + b, Δ the inverse Fourier transform of a few coefficients at places drawn from a seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.dense import DensePlan
from hotshoe.registry.formats.module_values import take_by_module
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NUMBER, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_weights": FLAG,
}


@dataclass(frozen=True, slots=True)
class _Part:
    spectrum: TensorEntry  # [n]
    seed: int
    scale: float

    def update(self, linear: LinearId, read: Read, base: BaseWeights) -> "Tensor":
        import torch

        shape = base.shape.linears[linear]
        places = torch.randperm(  # PEFT's draw
            shape.out_features * shape.in_features, generator=torch.Generator().manual_seed(self.seed)
        )[: self.spectrum.num_elements]
        spectrum = torch.zeros(shape.out_features * shape.in_features)
        spectrum[places] = read(self.spectrum)
        update = torch.fft.ifft2(spectrum.view(shape.out_features, shape.in_features)).real
        scaled: Tensor = update * self.scale
        return scaled


def plan_fourierft(config: Config, tensors: Tensors, base: BaseShape) -> DensePlan:
    """The plan of a FOURIERFT adapter; see `DenseFormat`."""
    targets = take_targets(config, base, by_layer=True)
    count_of = take_by_module(config, "n_frequency", "n_frequency_pattern", COUNT, 1000)
    scale = config.take("scaling", NUMBER, default=150.0)
    seed = config.take("random_loc_seed", INTEGER, default=777)
    config.close("FOURIERFT", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        count = count_of(shape.module)
        if count > shape.out_features * shape.in_features:
            raise InvalidAdapter("n_frequency", f"found {count}, more than {shape.module} of {base.name} has numbers")
        spectrum = tensors.take_of(linear, "fourierft_spectrum", reason="target_modules selects its module")
        require_shape(spectrum, (count,), of=f"n_frequency at {shape.module}")
        parts[linear] = _Part(spectrum, seed, scale)
    return DensePlan("FOURIERFT", parts)
