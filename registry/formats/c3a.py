"""C3A: y = (W + C / in_features) x + b, C of circulant blocks: each row is the one above, moved one to the right."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import IncompatibleAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.dense import DensePlan
from hotshoe.registry.formats.module_values import take_by_module
from hotshoe.registry.formats.peft_config import COUNT, FLAG, NULL, TEXT, Config, Rule, either, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {"bias": one_of("none"), "init_weights": either(either(FLAG, TEXT), NULL)}


@dataclass(frozen=True, slots=True)
class _Part:
    kernel: TensorEntry  # [out_features / size, in_features / size, size]: the blocks' first rows

    def update(self, linear: LinearId, read: Read, base: BaseWeights) -> "Tensor":
        import torch

        kernel = read(self.kernel)
        size = kernel.shape[2]
        steps = torch.arange(size)
        blocks = kernel[:, :, (steps[None] - steps[:, None]) % size]  # [out / size, in / size, size, size]
        inputs = base.shape.linears[linear].in_features
        return blocks.transpose(1, 2).reshape(-1, inputs) / inputs


def plan_c3a(config: Config, tensors: Tensors, base: BaseShape) -> DensePlan:
    """The plan of a C3A adapter; see `DenseFormat`."""
    targets = take_targets(config, base, by_layer=True)
    size_of = take_by_module(config, "block_size", "block_size_pattern", COUNT, 256)
    config.close("C3A", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        size = size_of(shape.module)
        if shape.in_features % size or shape.out_features % size:
            raise IncompatibleAdapter("block_size", f"found {size}, no divisor of both sides of {shape.module}")
        kernel = tensors.take_of(linear, "c3a_kernel", reason="target_modules selects its module")
        sizes = (shape.out_features // size, shape.in_features // size, size)
        require_shape(kernel, sizes, of=f"{shape.module} of {base.name}")
        parts[linear] = _Part(kernel)
    return DensePlan("C3A", parts)
