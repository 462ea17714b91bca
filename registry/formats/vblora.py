"""VBLORA: low-rank factors put together of pieces, each a softmax over the k likeliest vectors of one shared bank.

With save_only_topk_weights the file has which vectors these are, and what each counts, but for the last one's share.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.base import BaseShape, BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.peft_config import COUNT, FLAG, NUMBER, SHARE, Config, Rule, one_of
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
    "vblora_dropout": SHARE,
}


@dataclass(frozen=True, slots=True)
class _Logits:
    entry: TensorEntry  # [pieces, pieces, vectors], r of the first or of the second
    top: int

    def mix(self, read: Read, bank: "Tensor") -> "Tensor":
        """[pieces, pieces, length]."""
        likeliest = read(self.entry).topk(self.top, dim=-1)
        return _mixed(likeliest.values.softmax(dim=-1), bank[likeliest.indices])


@dataclass(frozen=True, slots=True)
class _Shares:
    places: TensorEntry  # [pieces, pieces, top], of vectors in the bank
    shares: TensorEntry  # [pieces, pieces, top - 1]

    def mix(self, read: Read, bank: "Tensor") -> "Tensor":
        """[pieces, pieces, length]; InvalidAdapter if a vector is there twice, of which PEFT takes the last."""
        import torch

        places, shares = read(self.places), read(self.shares)
        ordered = places.sort(dim=-1).values
        if (ordered[..., 1:] == ordered[..., :-1]).any():
            raise InvalidAdapter(self.places.name, "expected each vector once")
        last = 1 - shares.sum(-1, keepdim=True)
        return _mixed(torch.cat([shares, last], dim=-1), bank[places])


def _mixed(shares: "Tensor", vectors: "Tensor") -> "Tensor":
    return (shares[..., None] * vectors).sum(-2)


@dataclass(frozen=True, slots=True)
class VbLoraPlan:
    """A bank of vectors, and for each linear how its factors' pieces mix them."""

    bank: TensorEntry  # [vectors, length]
    pieces: Mapping[LinearId, tuple[_Logits | _Shares, _Logits | _Shares]]  # of A and of B
    rank: int
    virtual_tokens: int = 0

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.pieces)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        bank = read(self.bank)
        linears = {}
        for linear, (of_a, of_b) in self.pieces.items():
            a = of_a.mix(read, bank).flatten(1)
            b = of_b.mix(read, bank).transpose(1, 2).flatten(0, 1)
            linears[linear] = LoweredLinear(a=a.contiguous(), b=b.contiguous())
        return LoweredAdapter("VBLORA", linears)


def plan_vblora(config: Config, tensors: Tensors, base: BaseShape) -> VbLoraPlan:
    """The plan of a VBLORA adapter; see `Format`."""
    targets = take_targets(config, base, by_layer=True, defaults=_DEFAULTS)
    rank = config.take("r", COUNT, default=4)
    top = config.take("topk", COUNT, default=2)
    vectors = config.take("num_vectors", COUNT, default=256)
    length = config.take("vector_length", COUNT, default=256)
    has_shares = config.take("save_only_topk_weights", FLAG, default=False)
    config.close("VBLORA", _REST)
    if top > vectors:
        raise InvalidAdapter("topk", f"found {top}, expected at most num_vectors, {vectors}")

    bank = tensors.take("base_model.vblora_vector_bank", reason="every linear's factors are made of it")
    tensors.require_known_modules()
    require_shape(bank, (vectors, length), of="num_vectors and vector_length")

    def take(linear: LinearId, factor: str, sizes: tuple[int, int]) -> _Logits | _Shares:
        suffix, reason = f"vblora_logits_{factor}", "target_modules selects its module"
        place = f"{linear} of {base.name}"
        if has_shares:
            name, below = f"{suffix}_topk_indices", (vectors,)
            places = tensors.take_integers_of(linear, name, (*sizes, top), below=below, reason=reason)
            shares = tensors.take_of(linear, f"{suffix}_topk_weights", reason=reason, may_be_empty=top == 1)
            require_shape(shares, (*sizes, top - 1), of=place)
            return _Shares(places, shares)
        logits = tensors.take_of(linear, suffix, reason=reason)
        require_shape(logits, (*sizes, vectors), of=place)
        return _Logits(logits, top)

    pieces = {}
    for linear in targets:
        shape = base.linears[linear]
        if shape.in_features % length or shape.out_features % length:
            place = f"{linear} of {base.name}"
            raise InvalidAdapter("vector_length", f"found {length}, expected a divisor of both widths of {place}")
        of_a = take(linear, "A", (rank, shape.in_features // length))
        pieces[linear] = of_a, take(linear, "B", (shape.out_features // length, rank))
    return VbLoraPlan(bank, pieces, rank)
