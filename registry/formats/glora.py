"""GLORA: y = (W + A ∘ W + B) x + b + D ∘ b + E + W C: A scales rows of W, B adds to each number of a row the same.

That is an output scale, an update of rank 1, and a bias. A and B may be matrices of low rank ("lora", PEFT's default):
B is an update of that rank then, and A ∘ W, of full rank, is W as many times with its inputs and outputs scaled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear, ScaledCopies
from hotshoe.registry.formats.peft_config import COUNT, FLAG, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_REST: Mapping[str, Rule[object]] = {"bias": one_of("none"), "init_weights": FLAG}


@dataclass(frozen=True, slots=True)
class _Part:
    a: tuple[TensorEntry, ...]  # [out_features, 1] or [1]; or [out_features, rank] and [rank, in_features]
    b: tuple[TensorEntry, ...]
    c: tuple[TensorEntry, ...]  # [in_features, 1], or two whose product is that
    d: TensorEntry  # [out_features] or [1]
    e: TensorEntry
    has_bias: bool

    @property
    def rank(self) -> int:
        return self.b[1].shape[0] if len(self.b) == 2 else 1

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        import torch

        shape = base.shape.linears[linear]
        of_weight, added_to_it = [read(entry) for entry in self.a], [read(entry) for entry in self.b]
        inputs = [read(entry) for entry in self.c]
        of_bias, added = read(self.d), read(self.e)
        bias_delta: Tensor | None = None
        if self.has_bias:
            bias, weight = base.bias(linear), base.weight(linear)
            assert bias is not None  # has_bias is the base's
            mean = inputs[0] if len(inputs) == 1 else inputs[0] @ inputs[1]
            bias_delta = bias * of_bias + added + (weight @ mean).flatten()
        if len(of_weight) == 2:
            copies = ScaledCopies(of_weight[0].T.contiguous(), of_weight[1])
            return LoweredLinear(a=added_to_it[1], b=added_to_it[0], copies=copies, bias_delta=bias_delta)
        gain, row = of_weight[0].flatten(), added_to_it[0].flatten()
        return LoweredLinear(
            a=torch.ones(1, shape.in_features),
            b=row.expand(shape.out_features)[:, None].contiguous(),
            output_scale=(1 + gain).expand(shape.out_features).contiguous(),
            bias_delta=bias_delta,
        )


def plan_glora(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a GLORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=False)
    rank = config.take("r", COUNT, default=8)
    of_weight = config.take("config_A_B", one_of("lora", "vector", "constant", "none"), default="lora")
    of_inputs = config.take("config_C", one_of("lora", "vector", "none"), default="lora")
    of_bias = config.take("config_D_E", one_of("vector", "constant", "none"), default="constant")
    config.close("GLORA", _REST)
    if of_weight == "none":
        raise InvalidAdapter(
            "config_A_B", "expected lora, vector or constant: with none A and B are buffers of W's size"
        )

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        a, b = (_take_matrix(linear, x, of_weight, tensors, base, rank=rank) for x in "AB")
        c, d, e = _take_biases(linear, of_inputs, of_bias, tensors, base, rank=rank)
        parts[linear] = _Part(a, b, c, d, e, shape.has_bias)
    return LinearsPlan("GLORA", parts)


def _take_matrix(
    linear: LinearId, name: str, form: str, tensors: Tensors, base: BaseShape, *, rank: int
) -> tuple[TensorEntry, ...]:
    """A or B."""
    shape = base.linears[linear]
    if form == "lora":
        down = _take(linear, f"{name}.Xd", (shape.out_features, rank), tensors, base)
        return down, _take(linear, f"{name}.Xu", (rank, shape.in_features), tensors, base)
    sizes = (1,) if form == "constant" else (shape.out_features, 1)
    return (_take(linear, f"{name}.X", sizes, tensors, base),)


def _take_biases(
    linear: LinearId, of_inputs: str, of_bias: str, tensors: Tensors, base: BaseShape, *, rank: int
) -> tuple[tuple[TensorEntry, ...], TensorEntry, TensorEntry]:
    """C, D and E. Where they do nothing the file has PEFT's buffers of zeros, which are taken as they stand."""
    shape = base.linears[linear]
    inputs, outputs = shape.in_features, shape.out_features
    if not shape.has_bias or of_inputs == "none":
        c: tuple[TensorEntry, ...] = (_take(linear, "C.zeros", (inputs, 1), tensors, base),)
    elif of_inputs == "vector":
        c = (_take(linear, "C.X", (inputs, 1), tensors, base),)
    else:
        c = (
            _take(linear, "C.Xd", (inputs, rank), tensors, base),
            _take(linear, "C.Xu", (rank, 1), tensors, base),
        )
    if not shape.has_bias or of_bias == "none":
        d, e = (_take(linear, f"{x}.zeros", (outputs,), tensors, base) for x in "DE")
    else:
        d, e = (_take(linear, f"{x}.X", (outputs if of_bias == "vector" else 1,), tensors, base) for x in "DE")
    return c, d, e


def _take(linear: LinearId, suffix: str, sizes: tuple[int, ...], tensors: Tensors, base: BaseShape) -> TensorEntry:
    entry = tensors.take_of(linear, f"glora_{suffix}", reason="target_modules and config_A_B, C and D_E select it")
    require_shape(entry, sizes, of=f"{base.linears[linear].module} of {base.name}")
    return entry
