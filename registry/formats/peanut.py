"""PEANUT: y = W x + b + s B h(A W) x, where h is a small network over the columns of A W: once W is known, low rank.

h begins with an activation; each of `depth` encoders and then of as many decoders is a product and the activation,
and a decoder adds what its encoder was given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hotshoe.registry.formats.activations import activation
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NUMBER, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {"init_weights": FLAG}
_ACTIVATIONS = ("relu", "gelu", "silu", "swish", "tanh", "sigmoid")


@dataclass(frozen=True, slots=True)
class _Part:
    a: TensorEntry  # [rank, out_features]
    b: TensorEntry  # [out_features, rank]
    encoders: Sequence[TensorEntry]  # [rank, rank] each
    decoders: Sequence[TensorEntry]
    activation: str
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        apply = activation(self.activation)
        columns = apply(read(self.a).double() @ base.weight(linear).double())  # [rank, in_features]
        given = []
        for encoder in self.encoders:
            given.append(columns)
            columns = apply(read(encoder).double() @ columns)
        for decoder in self.decoders:
            columns = apply(read(decoder).double() @ columns) + given.pop()
        return LoweredLinear(a=columns.float(), b=read(self.b, scale=self.scale), scale=self.scale)


def plan_peanut(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a PEANUT adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank = config.take("r", COUNT, default=32)
    depth = config.take("depth", INTEGER, default=0)
    act_fn = config.take("act_fn", one_of(*_ACTIVATIONS), default="relu")
    scale = config.take("scaling", NUMBER, default=1.0)
    config.close("PEANUT", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape, reason = base.linears[linear], "target_modules selects its module"
        place = f"{shape.module} of {base.name}"
        a, b = (tensors.take_of(linear, f"peanut_{x}.weight", reason=reason) for x in "AB")
        require_shape(a, (rank, shape.out_features), of=place)
        require_shape(b, (shape.out_features, rank), of=place)
        coders = []
        for name in ("peanut_encoders", "peanut_decoders"):
            coders.append(
                [tensors.take_of(linear, f"{name}.{i}.weight", reason=f"depth is {depth}") for i in range(depth)]
            )
            for entry in coders[-1]:
                require_shape(entry, (rank, rank), of="r")
        parts[linear] = _Part(a, b, coders[0], coders[1], act_fn, scale)
    return LinearsPlan("PEANUT", parts)
