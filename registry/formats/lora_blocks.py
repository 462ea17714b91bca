"""BdLoRA: A or B of a module is block-diagonal, and the file has the blocks only, below each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hotshoe.registry.errors import IncompatibleAdapter, InvalidAdapter
from hotshoe.registry.formats.base import LinearShape
from hotshoe.registry.formats.peft_config import COUNT, FLAG, NULL, TEXT, Config, Rule, either, list_of, object_of

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = either(list_of(TEXT), NULL)
_FIELDS: Mapping[str, Rule[object]] = {
    "target_modules_bd_a": _NAMES,
    "target_modules_bd_b": _NAMES,
    "nblocks": COUNT,
    "match_strict": FLAG,
}


class BlockCounts(NamedTuple):
    """In how many blocks along the diagonal A and B are; 1 is an ordinary matrix."""

    a: int = 1
    b: int = 1


@dataclass(frozen=True, slots=True)
class LoraBlocks:
    """What use_bdlora says of each module."""

    in_a: tuple[str, ...]  # parts of the names of modules whose A has blocks
    in_b: tuple[str, ...]
    count: int
    is_strict: bool  # whether each module must have blocks

    def of(self, shape: LinearShape, rank: int) -> BlockCounts:
        """Raises InvalidAdapter if the config contradicts itself, IncompatibleAdapter for widths that do not divide."""
        in_a = any(name in shape.module for name in self.in_a)
        in_b = any(name in shape.module for name in self.in_b)
        if in_a and in_b:
            raise InvalidAdapter(
                "use_bdlora",
                f"expected {shape.module} in one of target_modules_bd_a and target_modules_bd_b, found both",
            )
        if not (in_a or in_b):
            if self.is_strict:
                raise InvalidAdapter(
                    "use_bdlora",
                    f"expected {shape.module} in target_modules_bd_a or target_modules_bd_b, as match_strict is true",
                )
            return BlockCounts()
        width = shape.in_features if in_a else shape.out_features
        if rank % self.count or width % self.count:
            raise IncompatibleAdapter(
                "use_bdlora",
                f"expected nblocks, found {self.count}, to divide r, {rank}, and {width}, the width of {shape.module}",
            )
        return BlockCounts(a=self.count) if in_a else BlockCounts(b=self.count)


def take_blocks(config: Config) -> LoraBlocks | None:
    """Takes use_bdlora."""
    found = config.take("use_bdlora", either(NULL, object_of(_FIELDS)), default=None)
    if found is None:
        return None
    fields = Config(found)
    return LoraBlocks(
        in_a=_names(fields, "target_modules_bd_a"),
        in_b=_names(fields, "target_modules_bd_b"),
        count=fields.take("nblocks", COUNT, default=1),
        is_strict=fields.take("match_strict", FLAG, default=True),
    )


def _names(fields: Config, name: str) -> tuple[str, ...]:
    found = fields.take(name, _NAMES, default=None)
    return () if found is None else tuple(found)


def whole(blocks: "Tensor", count: int) -> "Tensor":
    """The matrix of `count` blocks along its diagonal, of which `blocks` has one below the other."""
    import torch

    if count == 1:
        return blocks
    matrix: Tensor = torch.block_diag(*blocks.chunk(count))
    return matrix
