"""What an answer must be, in OpenAI's `response_format` and in vLLM's words for the same → OutputFormat.

A schema that is not `strict` is kept to all the same.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.errors import InvalidRequest

_GUIDED = {"guided_json": "json", "guided_regex": "regex", "guided_choice": "choice", "guided_grammar": "grammar"}
_KINDS = ("json", "json_object", "regex", "choice", "grammar")
FORMAT_FIELDS = ("response_format", "structured_outputs", *_GUIDED)


def output_format(body: Mapping[str, Any]) -> generation_pb2.OutputFormat | None:
    """What a request's body asks for, None if any text. Raises InvalidRequest."""
    asked = list(_asked(body))
    if len(asked) > 1:
        raise InvalidRequest(asked[1][0], f"is asked for beside {asked[0][0]}, expected one of them")
    return None if not asked else _format(*asked[0])


def _asked(body: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(where, kind, value) of each."""
    if (value := body.get("response_format")) is not None:
        yield from _response_format(value)
    structured = body.get("structured_outputs")
    if structured is not None:
        if not isinstance(structured, dict) or structured.keys() - set(_KINDS):
            raise InvalidRequest("structured_outputs", f"expected one of {', '.join(_KINDS)} in an object")
        for kind, value in structured.items():
            if value is not None and (kind, value) != ("json_object", False):
                yield f"structured_outputs.{kind}", kind, value
    for name, kind in _GUIDED.items():
        if body.get(name) is not None:
            yield name, kind, body[name]


def _response_format(value: Any) -> Iterator[tuple[str, str, Any]]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "json_object":
        yield "response_format", "json_object", True
    elif kind == "json_schema":
        where, inner = "response_format.json_schema", value.get("json_schema")
        if not isinstance(inner, dict) or not isinstance(inner.get("schema"), dict):
            raise InvalidRequest(where, 'expected {"name": …, "schema": {…}}')
        if unknown := sorted(inner.keys() - {"name", "description", "schema", "strict"}):
            raise InvalidRequest(f"{where}.{unknown[0][:80]}", "unknown")
        yield f"{where}.schema", "json", inner["schema"]
    elif kind != "text":
        raise InvalidRequest("response_format", "expected a type of text, json_object or json_schema")


def _format(where: str, kind: str, value: Any) -> generation_pb2.OutputFormat:
    if kind == "json_object":
        if value is not True:
            raise InvalidRequest(where, "expected true or false")
        return generation_pb2.OutputFormat(json_object=generation_pb2.JsonObject())
    if kind == "choice":
        texts = value if isinstance(value, list) else [None]
        return generation_pb2.OutputFormat(choices=generation_pb2.Choices(texts=[_text(where, one) for one in texts]))
    if kind == "json" and isinstance(value, dict):
        try:
            value = json.dumps(value, ensure_ascii=False)
        except RecursionError:
            raise InvalidRequest(where, "is nested too deeply") from None
    text = _text(where, value)
    if kind == "regex":
        return generation_pb2.OutputFormat(regex=text)
    if kind == "grammar":
        return generation_pb2.OutputFormat(lark=text)
    return generation_pb2.OutputFormat(json_schema=text)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(where, "expected a text, a list of texts or a schema, as it is of")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(where, "is not Unicode text") from None
    return value
