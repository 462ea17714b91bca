"""JSON that says one thing to every reader, and what a file says as it may be shown."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from hotshoe.registry.errors import InvalidAdapter

MAX_CONFIG_BYTES = 1 << 20
MAX_CONFIG_DEPTH = 16
_MAX_SHOWN = 256


def read_config(path: Path, *, name: str = "adapter_config.json") -> dict[str, object]:
    """The JSON object in that file, strictly: UTF-8, no duplicate key, no NaN or infinity, bounded size and depth.

    Raises:
        InvalidAdapter: it is not such a file; refusals call it `name`.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidAdapter(name, f"expected at most {MAX_CONFIG_BYTES} bytes")
    config = parse_json(data, name)
    if not isinstance(config, dict):
        raise InvalidAdapter(name, "expected a JSON object")
    if _is_deeper_than(config, MAX_CONFIG_DEPTH):
        raise InvalidAdapter(name, f"expected at most {MAX_CONFIG_DEPTH} levels of objects and lists")
    return config


def parse_json(data: bytes, field: str) -> object:
    """What that text says, as strictly; InvalidAdapter, naming the field, if it is not such a text."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        table = dict(pairs)
        if len(table) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise InvalidAdapter(field, f"expected each name once, found {shown(twice)} again")
        return table

    def refuse_constant(constant: str) -> NoReturn:
        raise InvalidAdapter(field, f"expected finite numbers, found {constant}")

    def finite(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) else refuse_constant(shown(text))

    def whole(text: str) -> int:
        return refuse_constant(text) if text == "-0" else int(text)  # which other readers take for a float

    hooks: dict[str, Any] = {"parse_constant": refuse_constant, "parse_float": finite}
    if b"-0" in data:  # where there is none, as in most, integers are read without a call for each
        hooks["parse_int"] = whole
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, **hooks)
    except RecursionError:
        raise InvalidAdapter(field, "is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidAdapter(field, f"expected UTF-8, found byte {data[error.start]:#04x} at {error.start}") from None
    except ValueError as error:  # also an integer of thousands of digits
        raise InvalidAdapter(field, f"expected JSON: {error}") from None


def shown(value: object) -> str:
    """A value out of a file as it may stand in a message or a log: ASCII without control characters, and short."""
    text = value if isinstance(value, str) and value and is_plain(value) else ascii(value)
    return text if len(text) <= 2 * _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def is_plain(text: str) -> bool:
    """Whether it is ASCII without control characters."""
    return text.isascii() and text.isprintable()


def _is_deeper_than(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    if levels == 0:
        return True
    children = value.values() if isinstance(value, dict) else value
    return any(_is_deeper_than(child, levels - 1) for child in children)
