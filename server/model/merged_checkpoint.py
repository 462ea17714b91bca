"""A base with one adapter in its weights: bfloat16 of the dequantized NF4 weight and the update. Nothing is written.

The NF4 codes stay what they are, so whoever reads the checkpoint itself again has the base as it was, bit for bit. The
merged weights are never quantized: that would lose most of an ordinary update, and the report says how much.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hotshoe.kernels.reference import dequantize_nf4
from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.recipes.dense_update import dense_update, unmergeable_parts
from hotshoe.registry.recipes.requantized import Kept, KeptSums
from hotshoe.server.model.backends import dequantized
from hotshoe.server.model.checkpoints import Checkpoint
from hotshoe.server.model.quantize import quantize_nf4
from hotshoe.server.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What became of an adapter's updates, all linears together."""

    linears: int
    kept: Kept  # in bfloat16, as it is served
    nf4_kept: Kept  # if it had been quantized to NF4 again, which it was not


class MergedCheckpoint:
    """A `Checkpoint` of the merged weights; they are computed as they are read."""

    def __init__(self, checkpoint: Checkpoint, spec: ModelSpec, adapter: LoweredAdapter) -> None:
        """Raises InvalidAdapter if any part of the adapter is no change of a weight or a bias."""
        if names := unmergeable_parts(adapter):
            raise InvalidAdapter(names, f"a {adapter.kind} adapter's cannot be merged into the base's weights")
        self.spec = _with_biases(spec, adapter)
        self.config = checkpoint.config
        self.weight_files = checkpoint.weight_files
        self._checkpoint = checkpoint
        self._linears: dict[str, LoweredLinear] = {}
        biases = {}
        for linear_id, shape in self.spec.linears():
            self._linears[shape.module] = adapter.linears.get(linear_id, LoweredLinear())
            if shape.has_bias:
                biases[f"{shape.module}.bias"] = (shape.module, shape.out_features)
        self._biases = biases
        self.names = checkpoint.names | biases.keys()
        self._served, self._as_nf4, self._merged = KeptSums(), KeptSums(), 0

    @property
    def report(self) -> MergeReport:
        """Of the linears that have been read."""
        return MergeReport(self._merged, self._served.kept, self._as_nf4.kept)

    def shape(self, name: str) -> tuple[int, ...]:
        return (self._biases[name][1],) if name in self._biases else self._checkpoint.shape(name)

    def tensor(self, name: str) -> Tensor:
        if name not in self._biases:
            return self._checkpoint.tensor(name)
        module, size = self._biases[name]
        bias = self._checkpoint.tensor(name).float() if name in self._checkpoint.names else torch.zeros(size)
        delta = self._linears[module].bias_delta
        return bias if delta is None else bias + delta

    def linear(self, module: str) -> Tensor:
        """[out_features, in_features] bfloat16."""
        weight = dequantized(self._checkpoint.linear(module))
        update = dense_update(self._linears[module], weight)
        if update is None:
            return weight.bfloat16()
        merged = (weight + update).bfloat16()
        self._served.add(weight, update, merged)
        self._as_nf4.add(weight, update, dequantize_nf4(quantize_nf4(weight + update)))
        self._merged += 1
        return merged


def _with_biases(spec: ModelSpec, adapter: LoweredAdapter) -> ModelSpec:
    """The spec with biases wherever the adapter adds one."""

    def any_of(*targets: str) -> bool:
        return any(
            linear.bias_delta is not None and linear_id.target in targets
            for linear_id, linear in adapter.linears.items()
        )

    return replace(
        spec,
        qkv_bias=spec.qkv_bias or any_of("q_proj", "k_proj", "v_proj", "qkv_proj"),
        o_bias=spec.o_bias or any_of("o_proj"),
        mlp_bias=spec.mlp_bias or any_of("gate_proj", "up_proj", "gate_up_proj", "down_proj"),
    )
