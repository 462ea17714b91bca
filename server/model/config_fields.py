"""Reads single fields of a config.json, whose author may have written anything: each refusal names the field."""

from collections.abc import Mapping
from typing import Any

from hotshoe.server.errors import UnsupportedModel

Config = Mapping[str, Any]
MOST = 1 << 31  # of what a size may be: products of two of them are still integers of 64 bits
_LARGEST = 1e18  # of other numbers, so that what is computed from them stays finite


def integer(config: Config, name: str, default: int | None = None, *, minimum: int = 1, maximum: int = MOST) -> int:
    """A size or a number of things; null and absence mean the default."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise UnsupportedModel(f"{name}: expected an integer from {minimum} to {maximum}, not {shown(value)}")
    return value


def number(config: Config, name: str, default: float | None, *, above: float | None = None) -> float:
    """A number of at least 0, or above `above`; null and absence mean the default."""
    value = config.get(name)
    value = default if value is None else value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LARGEST:  # NaN is not
        if above is None or value > above:
            return float(value)
    least = "from 0" if above is None else f"above {above:g}"
    raise UnsupportedModel(f"{name}: expected a number {least} and up to {_LARGEST:g}, not {shown(value)}")


def numbers(config: Config, name: str, count: int) -> tuple[float, ...]:
    """A list of so many numbers above 0."""
    value = config.get(name)
    if not isinstance(value, list) or len(value) != count:
        raise UnsupportedModel(f"{name}: expected a list of {count} numbers, not {shown(value)}")
    return tuple(number({name: one}, name, None, above=0.0) for one in value)


def flag(config: Config, name: str) -> bool:
    """True or false; null and absence mean false."""
    value = config.get(name)
    if value is not None and not isinstance(value, bool):
        raise UnsupportedModel(f"{name}: expected true or false, not {shown(value)}")
    return bool(value)


def section(config: Config, name: str) -> dict[str, Any]:
    """The fields of an object within the config; null and absence mean none."""
    value = config.get(name)
    if value is not None and not isinstance(value, dict):
        raise UnsupportedModel(f"{name}: expected an object, not {shown(value)}")
    return dict(value or {})


def shown(value: Any) -> str:
    """A value in so few characters that a message stays a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def spelled(value: Any) -> str:
    """A name as it stands there, in so few characters and none that a terminal would act on."""
    text = str(value)
    return text if text.isprintable() and len(text) <= 80 else shown(text)
