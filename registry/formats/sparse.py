"""SHIRA and SUPERTUNING: y = (W + S) x + b, S of a few numbers at places that the file has.

SUPERTUNING may add a low-rank update, (alpha / r) B A.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.dense import DensePlan
from hotshoe.registry.formats.peft_config import COUNT, FLAG, INTEGER, NULL, NUMBER, SHARE, TEXT, Config, Rule, either
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_SHIRA_REST: Mapping[str, Rule[object]] = {
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_weights": FLAG,
    # How the places were chosen.
    "mask_type": TEXT,
    "random_seed": either(INTEGER, NULL),
}
_SUPERTUNING_REST: Mapping[str, Rule[object]] = {
    "init_weights": FLAG,
    "lora_dropout": SHARE,
    # How the places were chosen.
    "select_top": FLAG,
}


@dataclass(frozen=True, slots=True)
class _Part:
    places: TensorEntry  # [2, n], rows and columns; or [n], counted along the rows
    values: TensorEntry  # [n], those of one place added up
    a: TensorEntry | None = None  # [r, in_features]
    b: TensorEntry | None = None  # [out_features, r]
    scale: float = 1.0

    def update(self, linear: LinearId, read: Read, base: BaseWeights) -> "Tensor":
        import torch

        shape = base.shape.linears[linear]
        places = read(self.places)
        if places.ndim == 2:
            places = places[0] * shape.in_features + places[1]
        update = torch.zeros(shape.out_features * shape.in_features).index_add(0, places, read(self.values))
        update = update.view(shape.out_features, shape.in_features)
        if self.a is not None and self.b is not None:
            update += read(self.b, scale=self.scale) @ read(self.a)
        return update


def plan_shira(config: Config, tensors: Tensors, base: BaseShape) -> DensePlan:
    """The plan of a SHIRA adapter; see `DenseFormat`."""
    targets = take_targets(config, base, by_layer=False)
    rank = config.take("r", COUNT, default=32)
    config.close("SHIRA", _SHIRA_REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape, reason = base.linears[linear], "target_modules selects its module"
        count = rank * (shape.in_features + shape.out_features)
        sides = (shape.out_features, shape.in_features)
        places = tensors.take_integers_of(linear, "shira_indices", (2, count), below=sides, reason=reason)
        values = tensors.take_of(linear, "shira_weight", reason=reason)
        require_shape(values, (count,), of=f"r at {shape.module}")
        parts[linear] = _Part(places, values)
    return DensePlan("SHIRA", parts)


def plan_supertuning(config: Config, tensors: Tensors, base: BaseShape) -> DensePlan:
    """The plan of a SUPERTUNING adapter; see `DenseFormat`."""
    targets = take_targets(config, base, by_layer=False)
    rank = config.take("r", either(COUNT, NULL), default=None)
    alpha = config.take("lora_alpha", NULL if rank is None else either(NUMBER, NULL), default=None)
    sparsity = config.take("sparsity", SHARE, default=0.99)
    if not config.take("save_precomputed_indices", FLAG, default=True):
        raise InvalidAdapter("save_precomputed_indices", "expected true: the places must be in the file")
    config.close("SUPERTUNING", _SUPERTUNING_REST)

    tensors.require_known_modules()
    parts = {}
    for linear in targets:
        shape, reason = base.linears[linear], "target_modules selects its module"
        size, place = shape.out_features * shape.in_features, f"{shape.module} of {base.name}"
        places = tensors.take_integers_of(
            linear, "supertuning_indices", (int(size * (1 - sparsity)),), below=(size,), reason=reason
        )
        values = tensors.take_of(linear, "supertuning_values", reason=reason)
        require_shape(values, places.shape, of=f"the places in {place}")
        if rank is None:
            parts[linear] = _Part(places, values)
            continue
        a, b = (tensors.take_of(linear, f"supertuning_lora_{x}.weight", reason="r is not null") for x in "AB")
        require_shape(a, (rank, shape.in_features), of=place)
        require_shape(b, (shape.out_features, rank), of=place)
        parts[linear] = _Part(places, values, a, b, (2 * rank if alpha is None else alpha) / rank)
    return DensePlan("SUPERTUNING", parts)
