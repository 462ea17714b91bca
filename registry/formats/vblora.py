"""VBLORA: low-rank factors put together of pieces, each a softmax over the k likeliest vectors of one shared bank."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, NUMBER, OFF, SHARE, Config, Rule, one_of
from hotshoe.registry.formats.plan import Read, Tensors, require_shape
from hotshoe.registry.formats.target_modules import QUERIES_AND_VALUES, take_targets
from hotshoe.registry.validation import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

_DEFAULTS = {family: names for family, names in QUERIES_AND_VALUES.items() if family != "mistral"}
_REST: Mapping[str, Rule[object]] = {
    "bias": one_of("none"),
    "fan_in_fan_out": FLAG,  # how W is stored
    "init_logits_std": NUMBER,
    "init_vector_bank_bound": NUMBER,
    "save_only_topk_weights": OFF,  # the file would hold indices and weights instead
    "vblora_dropout": SHARE,
}


@dataclass(frozen=True, slots=True)
class VbLoraPlan:
    """A bank of vectors, and for each linear how its factors' pieces mix them."""

    bank: TensorEntry  # [vectors, length]
    logits: Mapping[LinearId, tuple[TensorEntry, TensorEntry]]  # [rank, in / length, vectors], [out / length, rank, …]
    top: int
    rank: int
    virtual_tokens: int = 0

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.logits)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        bank = read(self.bank)
        linears = {}
        for linear, (of_a, of_b) in self.logits.items():
            a = self._mix(read(of_a), bank).flatten(1)
            b = self._mix(read(of_b), bank).transpose(1, 2).flatten(0, 1)
            linears[linear] = LoweredLinear(a=a.contiguous(), b=b.contiguous())
        return LoweredAdapter("VBLORA", linears)

    def _mix(self, logits: "Tensor", bank: "Tensor") -> "Tensor":
        """[…, vectors] → […, length]."""
        likeliest = logits.topk(self.top, dim=-1)
        return (likeliest.values.softmax(dim=-1)[..., None] * bank[likeliest.indices]).sum(-2)


def plan_vblora(config: Config, tensors: Tensors, base: BaseShape) -> VbLoraPlan:
    """The plan of a VBLORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True, defaults=_DEFAULTS)
    rank = config.take("r", COUNT, default=4)
    top = config.take("topk", COUNT, default=2)
    vectors = config.take("num_vectors", COUNT, default=256)
    length = config.take("vector_length", COUNT, default=256)
    config.close("VBLORA", _REST)
    if top > vectors:
        raise InvalidAdapter("topk", f"found {top}, expected at most num_vectors, {vectors}")

    bank = tensors.take("base_model.vblora_vector_bank", reason="every linear's factors are made of it")
    tensors.require_known_modules()
    require_shape(bank, (vectors, length), of="num_vectors and vector_length")
    logits = {}
    for linear in targets:
        shape, place = base.linears[linear], f"{linear} of {base.name}"
        of_a, of_b = (
            tensors.take_of(linear, f"vblora_logits_{x}", reason="target_modules selects its module") for x in "AB"
        )
        require_shape(of_a, (rank, shape.in_features // length, vectors), of=place)
        require_shape(of_b, (shape.out_features // length, rank, vectors), of=place)
        if shape.in_features % length or shape.out_features % length:
            raise InvalidAdapter("vector_length", f"found {length}, expected a divisor of both widths of {place}")
        logits[linear] = of_a, of_b
    return VbLoraPlan(bank, logits, top, rank)
