"""ADALORA: y = W x + b + s B diag(e) A x, with s = lora_alpha / (init_r + 1e-5), as trained with ranks that were cut.

The scale keeps the first rank, however few of its ranks are left in a linear; that may be none.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.by_linear import LinearsPlan
from hotshoe.registry.formats.lora import REST as LORA_REST
from hotshoe.registry.formats.lowered import LoweredLinear
from hotshoe.registry.formats.peft_config import (
    COUNT,
    FLAG,
    INTEGER,
    NOTHING,
    NULL,
    NUMBER,
    OBJECT,
    OFF,
    Config,
    Rule,
    either,
    one_of,
)
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import QUERIES_AND_VALUES, take_targets
from hotshoe.registry.validation import TensorEntry

_DEFAULTS = {family: names for family, names in QUERIES_AND_VALUES.items() if family != "mistral"}
_REST: Mapping[str, Rule[object]] = {
    **LORA_REST,
    "target_parameters": NOTHING,
    "use_dora": OFF,
    "use_rslora": OFF,
    "lora_bias": OFF,
    "bias": one_of("none"),
    "init_lora_weights": FLAG,
    "r": COUNT,  # not looked at: init_r is the rank
    "alpha_pattern": Rule("null or empty", lambda value: value in (None, {})),
    # Of training only.
    "beta1": NUMBER,
    "beta2": NUMBER,
    "deltaT": INTEGER,
    "orth_reg_weight": NUMBER,
    "target_r": COUNT,
    "tfinal": INTEGER,
    "tinit": INTEGER,
    "total_step": either(INTEGER, NULL),
}


@dataclass(frozen=True, slots=True)
class _Part:
    a: TensorEntry  # [rank, in_features]
    b: TensorEntry  # [out_features, rank]
    e: TensorEntry  # [rank, 1]
    scale: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        b = read(self.b, scale=self.scale) * read(self.e).flatten()
        return LoweredLinear(a=read(self.a), b=b, scale=self.scale)


def plan_adalora(config: Config, tensors: Tensors, base: BaseShape) -> LinearsPlan:
    """The plan of an ADALORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True, defaults=_DEFAULTS)
    first_rank = config.require("init_r", COUNT)
    was_cut = config.take("rank_pattern", either(OBJECT, NULL), default=None) is not None
    alpha = config.take("lora_alpha", NUMBER, default=8)
    if alpha <= 0:
        raise InvalidAdapter("lora_alpha", f"expected a number above 0, found {alpha}")
    config.close("ADALORA", _REST)

    tensors.require_known_modules()
    parts, idle = {}, []
    for linear in targets:
        shape = base.linears[linear]
        a, b, e = (
            tensors.take_of(linear, f"lora_{x}", reason="target_modules selects its module", may_be_empty=was_cut)
            for x in "ABE"
        )
        require_shape(a, (None, shape.in_features), of=f"{shape.module} of {base.name}")
        require_shape(b, (shape.out_features, a.shape[0]), of=f"{shape.module} of {base.name}")
        require_shape(e, (a.shape[0], 1), of=f"{shape.module} of {base.name}")
        if not (a.shape[0] <= first_rank if was_cut else a.shape[0] == first_rank):
            least = "at most init_r" if was_cut else "init_r, since rank_pattern is null"
            raise InvalidAdapter(a.name, f"found rank {a.shape[0]}, expected {least}, {first_rank}")
        if a.is_empty:
            idle += [a, b, e]
        else:
            parts[linear] = _Part(a, b, e, alpha / (first_rank + 1e-5))
    if not parts:
        raise InvalidAdapter("rank_pattern", "leaves no rank to any linear")
    return LinearsPlan("ADALORA", parts, tuple(idle))
