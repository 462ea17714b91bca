"""OutputFormat → Grammar: checked, compiled on a thread of its own, and kept for who asks for the same again."""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from weakref import WeakValueDictionary

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.errors import InvalidRequest, QueueFull
from hotshoe.server.model.grammar import Grammar
from hotshoe.server.model.grammars import JSON_OPTIONS, Grammars
from hotshoe.server.services.json_schemas import check_schema
from hotshoe.server.services.rpc import call_in

MAX_BYTES = 1 << 16
MAX_CHOICES = 4096
MAX_KEPT = 32  # that nobody uses at present
MAX_LIVE = 256  # that are under way; each may take tens of megabytes

_ANY_OBJECT = '{"type": "object"}'
_SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~/]")


class OutputFormats:
    """Belongs to the event loop."""

    def __init__(self, grammars: Grammars, executor: Executor) -> None:
        """Takes an executor as `deep_executor` makes them."""
        self._grammars = grammars
        self._executor = executor
        self._kept: OrderedDict[bytes, Grammar] = OrderedDict()  # those used last come last
        self._live: WeakValueDictionary[bytes, Grammar] = WeakValueDictionary()

    def warm(self) -> None:
        """Has the vocabulary read before anybody asks."""
        self._executor.submit(self._grammars.warm)

    async def grammar(self, message: generation_pb2.OutputFormat) -> Grammar:
        """What a message asks for.

        Raises:
            InvalidRequest: it is wrong, or more than is done here; names the field.
            QueueFull: too many different formats are under way.
            UnsupportedModel: the base's tokenizer is of an unknown kind.
        """
        key = message.SerializeToString(deterministic=True)
        grammar = self._find(key)
        if grammar is None:
            if len(self._live) >= MAX_LIVE:
                raise QueueFull(f"{MAX_LIVE} different formats are under way")
            grammar = await call_in(self._executor, self._found_or_compiled, key, message)
            self._live[key] = grammar
        self._kept[key] = grammar
        self._kept.move_to_end(key)
        if len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return grammar

    def _find(self, key: bytes) -> Grammar | None:
        grammar = self._live.get(key)
        return None if grammar is None or grammar.broken else grammar

    def _found_or_compiled(self, key: bytes, message: generation_pb2.OutputFormat) -> Grammar:
        """On the executor's thread: whoever waited may have waited for the very same."""
        return self._find(key) or compiled(self._grammars, message)


def compiled(grammars: Grammars, message: generation_pb2.OutputFormat) -> Grammar:
    """Checks and compiles. Blocks, and takes stack. Raises as `OutputFormats.grammar`."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest("format", f"expected one of {', '.join(_KINDS)}")
    return _KINDS[kind](grammars, f"format.{kind}", message)


def _json_schema(grammars: Grammars, field: str, message: generation_pb2.OutputFormat) -> Grammar:
    _check_size(field, message.json_schema)
    check_schema(field, message.json_schema)
    return grammars.json(field, message.json_schema)


def _json_object(grammars: Grammars, field: str, message: generation_pb2.OutputFormat) -> Grammar:
    return grammars.json(field, _ANY_OBJECT)


def _regex(grammars: Grammars, field: str, message: generation_pb2.OutputFormat) -> Grammar:
    _check_size(field, message.regex)
    return grammars.regex(field, message.regex)


def _choices(grammars: Grammars, field: str, message: generation_pb2.OutputFormat) -> Grammar:
    texts = message.choices.texts
    if not 1 <= len(texts) <= MAX_CHOICES:
        raise InvalidRequest(f"{field}.texts", f"expected 1 to {MAX_CHOICES} texts, not {len(texts)}")
    for index, text in enumerate(texts):
        if not text:
            raise InvalidRequest(f"{field}.texts[{index}]", "expected some text")
    pattern = "|".join(_SPECIAL.sub(r"\\\g<0>", text) for text in dict.fromkeys(texts))
    _check_size(f"{field}.texts", pattern)
    return grammars.regex(f"{field}.texts", pattern)


def _lark(grammars: Grammars, field: str, message: generation_pb2.OutputFormat) -> Grammar:
    _check_size(field, message.lark)
    return grammars.lark(field, _checked_lark(field, message.lark))


_KINDS: Mapping[str, Callable[[Grammars, str, generation_pb2.OutputFormat], Grammar]] = {
    "json_schema": _json_schema,
    "json_object": _json_object,
    "regex": _regex,
    "choices": _choices,
    "lark": _lark,
}


def _check_size(field: str, text: str) -> None:
    size = len(text.encode())
    if not 1 <= size <= MAX_BYTES:
        raise InvalidRequest(field, f"expected 1 to {MAX_BYTES} bytes of UTF-8, not {size}")


def _checked_lark(field: str, text: str) -> str:
    """The text, with the schemas in it checked and told of white space as those that stand alone are.

    What intersects and negates regular expressions is refused: there is no limit to what it may take.
    """
    for operator in "&~":
        if operator in text:
            problem = f"found {operator}, expected none: write it as \\x{ord(operator):x} where it is no operator"
            raise InvalidRequest(field, problem)
    head, *parts = text.split("%json")
    checked = [head]
    for part in parts:
        start = len(part) - len(part.lstrip())
        try:
            schema, end = json.JSONDecoder().raw_decode(part, start)
        except (ValueError, RecursionError):
            raise InvalidRequest(field, "expected a JSON schema, an object, after %json") from None
        check_schema(field, part[start:end])
        options = f'{{"x-guidance": {json.dumps(JSON_OPTIONS)}{", " if schema else ""}'
        checked.append(f"%json {options}{part[start + 1 :].lstrip()}")
    return "".join(checked)
