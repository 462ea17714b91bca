import json
import logging

import pytest

from hotshoe.server.logs import JsonFormatter, LineFormatter, escape

HOSTILE = 'a\nERROR forged\x1b[31m\r\u202e"quoted" é'


def _record(event: str = "event", **fields: object) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": event, "levelname": "INFO"})
    record.fields = fields
    return record


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_an_event_is_one_line_without_control_characters(formatter: logging.Formatter) -> None:
    line = formatter.format(_record(HOSTILE, value=HOSTILE))
    assert line.isprintable()


def test_a_traceback_stays_in_its_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        record = _record()
        record.exc_info = (type(error), error, error.__traceback__)
    line = LineFormatter().format(record)
    assert "Traceback" in line and "first" in line
    assert "\n" not in line


def test_json_holds_the_fields_as_they_are() -> None:
    entry = json.loads(JsonFormatter().format(_record("loaded", value=HOSTILE, count=3)))
    assert entry["event"] == "loaded"
    assert entry["value"] == HOSTILE
    assert entry["count"] == 3
    assert entry["level"] == "info"


def test_plain_values_are_not_quoted_and_others_are() -> None:
    line = LineFormatter().format(_record("event", plain="a:b", spaced="a b", empty="", seconds=0.123456789))
    assert line.endswith('INFO event plain=a:b spaced="a b" empty="" seconds=0.123457')


def test_escape_keeps_what_is_printable() -> None:
    assert escape("é ok") == "é ok"
    assert escape("a\nb\x1b") == "a\\nb\\x1b"
