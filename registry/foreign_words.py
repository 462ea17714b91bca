"""Words from outside: annotations that may be kept, and whatever is to stand in a message."""

from collections.abc import Callable, Mapping

from hotshoe.registry.errors import RegistryError

MAX_ANNOTATION_BYTES = 4 << 10
_SHOWN = 80  # characters


def check_printable(annotations: Mapping[str, str], refusal: Callable[[str, str], RegistryError]) -> None:
    """Accepts printable annotations below 4 KiB in all; else raises what `refusal` makes of a field and a problem."""
    total = sum(len(text.encode(errors="replace")) for pair in annotations.items() for text in pair)
    if total >= MAX_ANNOTATION_BYTES:
        raise refusal("annotations", f"have {total} bytes; expected fewer than {MAX_ANNOTATION_BYTES}")
    for key, value in annotations.items():
        field = annotation_field(key)
        if not (key.isascii() and key.isprintable() and key and " " not in key):
            raise refusal(field, "expected a key of printable ASCII without spaces")
        if not value.isprintable():
            raise refusal(field, "expected printable text on one line")


def annotation_field(key: str) -> str:
    """How a message calls an annotation."""
    return f"annotations[{shown_text(key)}]"


def shown_text(text: str) -> str:
    """The beginning of a text from outside, fit for a message."""
    return ascii(text[:_SHOWN])[1:-1]
