"""Plans of kinds that change each linear by itself: what they found of it, and how that becomes canonical."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from hotshoe.registry.formats.base import BaseWeights, LinearId
from hotshoe.registry.formats.lowered import LoweredAdapter, LoweredLinear
from hotshoe.registry.formats.plan import Read
from hotshoe.registry.validation import TensorEntry


class LinearPart(Protocol):
    """One linear's claimed tensors, and the numbers that its config gives it."""

    @property
    def rank(self) -> int:
        """Of what `lower` gives."""

    def lower(self, linear: LinearId, read: Read, base: BaseWeights) -> LoweredLinear:
        """The canonical form. Reads every tensor that was claimed once."""


@dataclass(frozen=True, slots=True)
class LinearsPlan:
    """A part for each linear, in base order."""

    kind: str
    parts: Mapping[LinearId, LinearPart]
    idle: tuple[TensorEntry, ...] = ()  # claimed, and without effect
    virtual_tokens: int = 0

    @property
    def rank(self) -> int:
        return max((part.rank for part in self.parts.values()), default=0)

    @property
    def linears(self) -> tuple[LinearId, ...]:
        return tuple(self.parts)

    def lower(self, read: Read, base: BaseWeights) -> LoweredAdapter:
        for entry in self.idle:
            read(entry)
        return LoweredAdapter(
            self.kind, {linear: part.lower(linear, read, base) for linear, part in self.parts.items()}
        )
