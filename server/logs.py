"""Log lines: one an event, `name key=value …` or JSON, on standard error. Control characters never reach a terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("hotshoe")


def configure(*, level: str, as_json: bool) -> None:
    """Sends everything at or above `level` to standard error, in one of two formats."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    LOG.setLevel(level.upper())


def log_event(level: int, event: str, /, *, error: BaseException | None = None, **fields: Any) -> None:
    """Logs `event` with its fields; `error` adds a traceback."""
    if LOG.isEnabledFor(level):
        exc_info = (type(error), error, error.__traceback__) if error else None
        LOG.log(level, event, extra={"fields": fields}, exc_info=exc_info)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {"time": _time(record), "level": record.levelname.lower(), "event": record.getMessage()}
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO event key=value`, a traceback folded into its line."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [_time(record), record.levelname, escape(record.getMessage())]
        parts += [f"{key}={_value(value)}" for key, value in getattr(record, "fields", {}).items()]
        if record.exc_info:
            parts.append(f"traceback={_value(self.formatException(record.exc_info))}")
        return " ".join(parts)


def escape(text: str) -> str:
    """`text` with everything that is not printable written as an escape, so that it stays on its line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    return (
        text
        if text.isascii() and text.isprintable() and text and " " not in text and '"' not in text
        else json.dumps(text)
    )


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
