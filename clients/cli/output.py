"""What the verbs print: JSON from the wire's messages, plain tables, text that cannot move the cursor."""

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from hotshoe.protos.v1.registry_pb2 import Approximation
    from hotshoe.protos.v1.residency_pb2 import ResidentAdapter

DIGEST_CHARS = len("sha256:") + 12


def print_json(value: Any) -> None:
    """Prints a message, or lists and dicts of them, as one JSON document; indented on a terminal, else on one line."""
    print(json.dumps(to_data(value), ensure_ascii=False, indent=2 if sys.stdout.isatty() else None), flush=True)


def to_data(value: Any) -> Any:
    """A message as plain values: whole numbers as such, enums as lower-case words, durations in seconds, times in ISO.

    An unset optional field or message is null.
    """
    match value:
        case str() | bytes() | int() | float() | None:
            return value
        case dict():
            return {key: to_data(item) for key, item in value.items()}
    if not hasattr(value, "DESCRIPTOR"):
        return [to_data(item) for item in value]
    match value.DESCRIPTOR.full_name:
        case "google.protobuf.Duration":
            return value.ToNanoseconds() / 1e9
        case "google.protobuf.Timestamp":
            return value.ToJsonString()
    return {field.name: _field_data(value, field) for field in value.DESCRIPTOR.fields}


def _field_data(message: Any, field: Any) -> Any:
    item = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {str(key): to_data(entry) for key, entry in item.items()}
    if field.is_repeated:
        return [_enum_word(field.enum_type, number) if field.enum_type else to_data(number) for number in item]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _enum_word(field.enum_type, item) if field.enum_type else to_data(item)


def _enum_word(enum_type: Any, number: int) -> str:
    """ "device" for TIER_DEVICE: the value's name without what all names of its enum begin with."""
    prefix = enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
    value = enum_type.values_by_number.get(number)
    return value.name.removeprefix(prefix).lower() if value else str(number)


def enum_word(message: "Message", field_name: str) -> str:
    """The value of an enum field as a lower-case word."""
    return _enum_word(message.DESCRIPTOR.fields_by_name[field_name].enum_type, getattr(message, field_name))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Prints aligned columns, never wrapped: easy to read, to grep and to cut."""
    lines = [columns, *([printable(str(cell)) or "-" for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Prints one "name  value" line for each field."""
    pairs = [(name, printable(str(value)) or "-") for name, value in fields]
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        print(f"{name.ljust(width)}  {value}")


def printable(text: str) -> str:
    """Text from elsewhere, without the control characters that could rewrite the screen; line feeds and tabs stay."""
    return "".join(char if char in "\n\t" or char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def human_bytes(count: int) -> str:
    """ "4.2 MB": decimal units, as disks and networks have them."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def approximation(value: "Approximation") -> str:
    """What an approximate adapter keeps, in one line."""
    return (
        f"cut to rank {value.rank}, {value.energy:.2%} of the update kept, "
        f"at least {value.least_energy:.2%} ({value.least_linear})"
    )


def resident_name(adapter: "ResidentAdapter") -> str:
    """An adapter in memory, and which of its tasks it is."""
    return f"{adapter.name}#{adapter.task}" if adapter.HasField("task") else str(adapter.name)


def short_digest(digest: str, *, full: bool = False) -> str:
    """The first characters of a digest, enough to tell adapters apart."""
    return digest if full else digest[:DIGEST_CHARS]
