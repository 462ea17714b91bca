"""What a PEFT config says for a set of linears."""

from collections.abc import Iterable

from hotshoe.registry.formats.base import BaseShape, LinearId


def target_names(linears: Iterable[LinearId], base: BaseShape) -> list[str]:
    """Names of the linears' kinds, if those of every layer are there; else of each module."""
    chosen = set(linears)
    targets = {linear.target for linear in chosen}
    if chosen == {linear for linear in base.linears if linear.target in targets}:
        return sorted(targets)
    return module_names(chosen, base)


def module_names(linears: Iterable[LinearId], base: BaseShape) -> list[str]:
    """The full name of each linear's module."""
    return sorted(base.linears[linear].module for linear in linears)
