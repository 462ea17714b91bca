"""Files that a verb is given, read whole: no more of them than what they should hold can have."""

from pathlib import Path

MAX_BYTES = 1 << 20  # as hotshoe.registry.attachment has it of documents; a schema has far less


def read_bytes(path: Path) -> bytes:
    """Raises ValueError for what is larger, OSError for what cannot be read; both name the file."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: expected at most {MAX_BYTES} bytes")
    return data


def read_text(path: Path) -> str:
    """Of UTF-8; raises as `read_bytes` does."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error.reason} at byte {error.start})") from None
