"""Values by module: those of the first key of a pattern table that matches a module's name, or else one for all."""

from collections.abc import Callable
from typing import TypeVar

from hotshoe.registry.errors import InvalidAdapter
from hotshoe.registry.formats.module_pattern import StepBudget
from hotshoe.registry.formats.peft_config import Config, Rule, table_of
from hotshoe.registry.formats.target_modules import compile_pattern

T = TypeVar("T")


def take_by_module(config: Config, field: str, pattern_field: str, rule: Rule[T], default: T) -> Callable[[str], T]:
    """Takes a field and its table of patterns; gives the value of a module by its full name."""
    common = config.take(field, rule, default=default)
    table = config.take(pattern_field, table_of(rule), default={})
    budget = StepBudget()
    patterns = [(compile_pattern(pattern_field, key, budget), value) for key, value in table.items()]

    def of(module: str) -> T:
        try:
            return next((value for pattern, value in patterns if pattern.matches_tail(module)), common)
        except ValueError as error:
            raise InvalidAdapter(pattern_field, str(error)) from None

    return of
