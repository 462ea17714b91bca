"""DELORA: y = W x + b + (λ / r) B diag(1 / (‖Aᵢ‖ ‖Bᵢ‖)) A diag(w) x, with w the norms of W's columns as trained."""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.module_values import take_by_module
from hotshoe.registry.formats.peft_config import COUNT, FLAG, NUMBER, SHARE, Config, Rule, one_of, table_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    # Where λ began: it is in the file.
    "delora_lambda": NUMBER,
    "lambda_pattern": table_of(NUMBER),
    "init_weights": FLAG,
    "module_dropout": SHARE,
}
_LEAST_NORM = 1e-4  # PEFT's


@dataclass(frozen=True, slots=True)
class _Part:
    a: TensorEntry  # [rank, in_features]
    b: TensorEntry  # [out_features, rank]
    strength: TensorEntry  # λ, [1]
    norms: TensorEntry  # w, [in_features]

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        a, b = read(self.a), read(self.b)
        lengths = a.norm(dim=1).clamp(min=_LEAST_NORM) * b.norm(dim=0).clamp(min=_LEAST_NORM)
        return LoweredLinear(a=a * read(self.norms), b=b * (read(self.strength) / self.rank / lengths))


def plan_delora(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of a DELORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True)
    rank_of = take_by_module(config, "r", "rank_pattern", COUNT, 8)
    config.close("DELORA", _REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape = base.linears[linear]
        rank, place = rank_of(shape.module), f"{shape.module} of {base.name}"
        a, b, strength, norms = (
            tensors.take_of(linear, f"delora_{x}", reason="target_modules selects its module")
            for x in ("A", "B", "lambda", "w_norm")
        )
        require_shape(a, (rank, shape.in_features), of=place)
        require_shape(b, (shape.out_features, rank), of=place)
        require_shape(strength, (1,), of=place)
        require_shape(norms, (shape.in_features,), of=place)
        parts[linear] = _Part(a, b, strength, norms)
    return LinearsPlan("DELORA", parts)
