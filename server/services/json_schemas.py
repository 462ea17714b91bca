"""What must be known of a stranger's JSON schema before it is compiled: that compiling it ends.

The compiler has limits of its own (size, depth, states) but for two things. `multipleOf` becomes an automaton with as
many states as the least common multiple of all that must hold at once. And patterns of which several must hold at once
are intersected, where one step takes the product of their alternatives, of which a pattern has no more than characters.
"""

import json
import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from hotshoe.server.errors import InvalidRequest

MAX_MULTIPLE = 10_000
MAX_PATTERN_BITS = 17  # of the lengths of patterns that may have to hold at once: about the logarithm of their product
MAX_KEY_PATTERNS = 64
MAX_KEY_PATTERN_CHARS = 256
_FORMAT_BITS = 5  # what a `format` counts for among patterns
_MAX_DIGITS = 20

_APPLIED_BESIDE = ("anyOf", "oneOf", "$ref", "patternProperties")  # each to the value that the other keywords are for
_ONLY_REFERRED_TO = ("$defs", "definitions")
_MAPS_OF_SCHEMAS = ("properties", "patternProperties")

_Schema = dict[str, Any]


def check_schema(field: str, text: str) -> None:
    """Raises InvalidRequest for what is no JSON object, and for what might take too long to compile."""
    try:
        schema = json.loads(
            text, parse_int=Decimal, parse_float=Decimal, parse_constant=_no_number, object_pairs_hook=_unique
        )
        if not isinstance(schema, dict):
            raise ValueError("expected a JSON schema, an object")
        objects = list(_objects(schema))
        _check_multiples(objects)
        _check_keys(objects)
        _check_patterns(objects)
    except RecursionError:
        raise InvalidRequest(field, "is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(field, f"expected JSON: {error}") from None
    except ValueError as error:
        raise InvalidRequest(field, str(error)) from None


def _check_multiples(objects: list[_Schema]) -> None:
    """As if all had to hold at once."""
    values = {_ordinary(s["multipleOf"]) for s in objects if isinstance(s.get("multipleOf"), Decimal)}
    least = min((int(value.as_tuple().exponent) for value in values), default=0)
    multiple = math.lcm(*(abs(int(value.scaleb(-least))) for value in values if value))
    if multiple > MAX_MULTIPLE:
        raise ValueError(
            f"multipleOf: their least common multiple is {multiple} of their smallest decimal place, expected at most "
            f"{MAX_MULTIPLE}"
        )


def _check_keys(objects: list[_Schema]) -> None:
    keys = [key for s in objects if isinstance(found := s.get("patternProperties"), dict) for key in found]
    if len(keys) > MAX_KEY_PATTERNS or any(len(key) > MAX_KEY_PATTERN_CHARS for key in keys):
        raise ValueError(
            f"patternProperties: expected at most {MAX_KEY_PATTERNS} patterns of {MAX_KEY_PATTERN_CHARS} characters"
        )


def _check_patterns(objects: list[_Schema]) -> None:
    """Finds, for each schema, the bits of patterns that may have to hold at once for a value or a part of it."""
    graph = _References(objects)
    parts = {id(schema): [_Part(part, graph) for part in _parts(schema)] for schema in objects}
    above: dict[int, list[int]] = {}
    for schema, its_parts in parts.items():
        for other in {other for part in its_parts for other in part.leads_to}:
            above.setdefault(other, []).append(schema)
    bits = dict.fromkeys(parts, 0)
    waiting = dict.fromkeys(schema for schema, its_parts in parts.items() if any(part.bits for part in its_parts))
    while waiting:  # each number only grows, and not far
        del waiting[schema := next(iter(waiting))]
        found = sum(max([part.bits, *(bits[other] for other in part.leads_to)]) for part in parts[schema])
        if found > bits[schema]:
            bits[schema] = found
            waiting |= dict.fromkeys(above.get(schema, ()))
            if found > MAX_PATTERN_BITS and len(parts[schema]) > 1:
                names = ", ".join(("allOf", *_APPLIED_BESIDE))
                raise ValueError(f"{names}: too many or too long patterns may have to hold at once")


class _Part:
    """Of a schema: the bits of its own pattern, and the ids of the schemas that a value must fit too, or a part of it.

    What is only data is taken for schemas as well, which does no harm.
    """

    __slots__ = ("bits", "leads_to")

    def __init__(self, part: _Schema, references: "_References") -> None:
        pattern = part.get("pattern")
        length = len(pattern).bit_length() if isinstance(pattern, str) else 0
        self.bits = max(length, _FORMAT_BITS if isinstance(part.get("format"), str) else 0)
        self.leads_to: set[int] = set()
        for name, value in part.items():
            if name in _ONLY_REFERRED_TO:
                continue
            if name == "$ref" and isinstance(value, str):
                self.leads_to.add(id(references.target(value)))
            elif name in _MAPS_OF_SCHEMAS and isinstance(value, dict):
                self.leads_to |= {id(other) for other in value.values() if isinstance(other, dict)}
            else:
                self.leads_to |= {id(other) for other in _nearest_objects(value)}


class _References:
    """What "$ref" means."""

    def __init__(self, objects: list[_Schema]) -> None:
        """Takes all objects of a schema, itself first."""
        self._root = objects[0]
        self._by_path_alone = not any("$id" in schema for schema in objects[1:])

    def target(self, reference: str) -> _Schema:
        """The schema that is meant: all of it, if finding that takes more than following a path."""
        if not self._by_path_alone or not reference.startswith("#/") or "%" in reference:
            return self._root
        found: Any = self._root
        for step in reference[2:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict):
                found = found.get(step)
            elif isinstance(found, list) and step.isascii() and step.isdigit() and len(step) < 9:
                found = found[int(step)] if int(step) < len(found) else None
            else:
                found = None
        return found if isinstance(found, dict) else self._root


def _parts(schema: _Schema) -> list[_Schema]:
    """Parts that are for the same value: their patterns may have to hold at once."""
    alone = {name: value for name, value in schema.items() if name not in (*_APPLIED_BESIDE, "allOf")}
    together = schema.get("allOf")
    parts: list[_Schema] = [alone, *({name: schema[name]} for name in _APPLIED_BESIDE if name in schema)]
    return [*parts, *({"allOf": one} for one in together)] if isinstance(together, list) else parts


def _objects(value: Any) -> Iterator[_Schema]:
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _nearest_objects(value: Any) -> Iterator[_Schema]:
    """The objects in a value that are in no other one of it."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
        elif isinstance(one, list):
            waiting += one


def _ordinary(value: Decimal) -> Decimal:
    _, digits, exponent = value.as_tuple()
    if len(digits) > _MAX_DIGITS or not isinstance(exponent, int) or abs(exponent) > _MAX_DIGITS:
        raise ValueError("multipleOf: expected a number of ordinary size")
    return value.normalize()


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _unique(pairs: list[tuple[str, Any]]) -> _Schema:
    found: _Schema = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!r} is there twice")
        if name == "x-guidance":
            raise ValueError(f"{name!r} is not understood here")
        found[name] = value
    return found
