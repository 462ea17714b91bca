"""What messages ask for, against jsonschema and re; and strangers' schemas, which are refused or end."""

import asyncio
import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from model_directories import tiny_tokenizer

from hotshoe.protos.v1 import generation_pb2
from hotshoe.server.errors import InvalidRequest, QueueFull
from hotshoe.server.model.grammar import Grammar, advance
from hotshoe.server.model.grammars import Grammars, deep_executor
from hotshoe.server.model.tokenizer import Tokenizer
from hotshoe.server.services import output_formats
from hotshoe.server.services.output_formats import MAX_KEPT, OutputFormats, compiled

Format = generation_pb2.OutputFormat
EOS = 256
CLOSING = b'"}]'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny_tokenizer(), eos_token_ids=[EOS])


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer, vocab_size=300)


@pytest.fixture
def formats(grammars: Grammars) -> Iterator[OutputFormats]:
    executor = deep_executor("formats", initializer=int)
    yield OutputFormats(grammars, executor)
    executor.shutdown()


def walk(tokenizer: Tokenizer, grammar: Grammar, rng: random.Random, *, limit: int = 300) -> str | None:
    """A text of the grammar, any token that is allowed at a time; None if it is none after so many."""
    closing = {token for mark in CLOSING for token in tokenizer.encode(chr(mark), add_special_tokens=False)}
    state, drawn = grammar.begin([EOS]), []
    while not state.over and len(drawn) < limit:
        allowed = np.flatnonzero(state.allowed(300)).tolist()
        if EOS in allowed and rng.random() < 0.3:
            return tokenizer.decode(drawn)
        likely = [token for token in allowed if token in closing] if rng.random() < 0.4 else []
        drawn.append(rng.choice(likely or [token for token in allowed if token != EOS]))
        advance([(state, drawn[-1])])
        assert not state.problem, state.problem
    return tokenizer.decode(drawn) if state.over else None


SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["b"]},
    {"type": "array", "items": {"enum": [1, "two", None, [3], {"é": 4.5}]}, "minItems": 2, "maxItems": 4},
    {"anyOf": [{"const": "x\n"}, {"type": "boolean"}, {"type": "number", "minimum": -2.5, "exclusiveMaximum": 7}]},
    {"type": "object", "additionalProperties": {"type": "integer", "multipleOf": 7}, "required": ["k"]},
    {"type": "object", "patternProperties": {"^x[0-9]$": {"type": "null"}}, "additionalProperties": False},
    {"type": "string", "pattern": "^[a-c]+-[0-9]{2}$", "maxLength": 9},
    {"type": "string", "format": "date"},
    {
        "$ref": "#/$defs/tree",
        "$defs": {"tree": {"type": "object", "properties": {"n": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                           "required": ["n"], "additionalProperties": False}},
    },
    {"allOf": [{"properties": {"a": {"type": "string"}}, "type": "object"}, {"required": ["a"]}]},
    {"type": "array", "prefixItems": [{"const": 1}, {"type": ["string", "null"]}], "items": False, "minItems": 2},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=range(len(SCHEMAS)))
def test_every_text_is_of_its_schema(tokenizer: Tokenizer, grammars: Grammars, schema: dict[str, Any]) -> None:
    grammar = compiled(grammars, Format(json_schema=json.dumps(schema)))
    texts = [walk(tokenizer, grammar, random.Random(seed)) for seed in range(25)]
    whole = [text for text in texts if text is not None]
    assert len(whole) > 5
    for text in whole:
        jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator)


@pytest.mark.parametrize("pattern", [r"[0-9]{2,4}|x", "(é|[a-z])+/ü?", "^a.b$", r"(?i)yes|no\.", "[\\s\\S]{3}", "a\nb"])
def test_every_text_is_matched_whole(tokenizer: Tokenizer, grammars: Grammars, pattern: str) -> None:
    grammar = compiled(grammars, Format(regex=pattern))
    texts = {walk(tokenizer, grammar, random.Random(seed)) for seed in range(25)}
    assert all(re.fullmatch(pattern, text) for text in texts - {None}) and texts - {None}


def test_every_text_is_one_of_the_choices(tokenizer: Tokenizer, grammars: Grammars) -> None:
    choices = ["yes", "no", "yes, but", r"a.b*[c]{2}(d)|\e^f$", "g\th\n/i", "~&#- ü"]
    grammar = compiled(grammars, Format(choices=generation_pb2.Choices(texts=[*choices, "yes"])))
    assert {walk(tokenizer, grammar, random.Random(seed)) for seed in range(60)} == set(choices)


def test_any_object_and_schemas_within_a_grammar(tokenizer: Tokenizer, grammars: Grammars) -> None:
    any_object = compiled(grammars, Format(json_object=generation_pb2.JsonObject()))
    texts = [walk(tokenizer, any_object, random.Random(seed)) for seed in range(20)]
    assert all(isinstance(json.loads(text), dict) for text in texts if text) and any(texts)
    call = 'start: "call(" args ")"\nargs: %json {"type": "array", "items": {"type": "integer"}, "maxItems": 3}\n'
    grammar = compiled(grammars, Format(lark=call))
    for seed in range(20):
        text = walk(tokenizer, grammar, random.Random(seed))
        assert text is None or isinstance(json.loads(text.removeprefix("call(").removesuffix(")")), list)
        assert text is None or "\n\n" not in text and "  " not in text.replace("\n ", "\n"), "no endless blanks"


MANY = [f"(a|b)*a(a|b){{{i}}}c" for i in range(20)]


@pytest.mark.parametrize(
    "message, field, problem",
    [
        (Format(), "format", "expected one of json_schema, json_object, regex, choices, lark"),
        (Format(json_schema=""), "format.json_schema", "65536"),
        (Format(json_schema="{" + " " * 70_000 + "}"), "format.json_schema", "65536 bytes"),
        (Format(json_schema="{"), "format.json_schema", "expected JSON"),
        (Format(json_schema="[]"), "format.json_schema", "an object"),
        (Format(json_schema='{"a": 1, "a": 2}'), "format.json_schema", "'a' is there twice"),
        (Format(json_schema='{"x-guidance": {"lenient": true}}'), "format.json_schema", "not understood"),
        (Format(json_schema='{"items":' * 5000 + "{}" + "}" * 5000), "format.json_schema", "nested too deeply"),
        (Format(json_schema='{"multipleOf": 1000003}'), "format.json_schema", "least common multiple"),
        (Format(json_schema='{"allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}'), "format.json_schema", "least"),
        (Format(json_schema='{"multipleOf": 1e999999999}'), "format.json_schema", "ordinary size"),
        (Format(json_schema=json.dumps({"allOf": [{"pattern": p} for p in MANY]})), "format.json_schema", "patterns"),
        (
            Format(json_schema=json.dumps({"patternProperties": {f"^{i}x": {} for i in range(99)}})),
            "format.json_schema",
            "patternProperties",
        ),
        (Format(json_schema=json.dumps({"enum": list(range(10**5))})), "format.json_schema", "65536 bytes"),
        (Format(regex="(a+)+" * 20_000), "format.regex", "65536 bytes"),
        (Format(choices=generation_pb2.Choices()), "format.choices.texts", "1 to 4096"),
        (Format(choices=generation_pb2.Choices(texts=["a"] * 10**6)), "format.choices.texts", "not 1000000"),
        (Format(choices=generation_pb2.Choices(texts=["a", ""])), "format.choices.texts[1]", "some text"),
        (Format(choices=generation_pb2.Choices(texts=["." * 40_000])), "format.choices.texts", "65536 bytes"),
        (Format(lark="start: A\nA: /a/ & /b/"), "format.lark", r"write it as \x26"),
        (Format(lark="start: A\nA: ~/a/"), "format.lark", r"write it as \x7e"),
        (Format(lark='start: %json {"multipleOf": 1000003}'), "format.lark", "least common multiple"),
        (Format(lark="start: %json nothing"), "format.lark", "after %json"),
        (Format(lark="start: "), "format.lark", ""),
    ],
    ids=range(24),
)
def test_what_is_wrong_or_too_much_is_named_soon(
    grammars: Grammars, message: generation_pb2.OutputFormat, field: str, problem: str
) -> None:
    start = time.thread_time()
    with pytest.raises(InvalidRequest) as refused:
        compiled(grammars, message)
    assert refused.value.field == field and problem in refused.value.problem
    assert time.thread_time() - start < 5.0


def test_patterns_that_never_meet_may_be_many(grammars: Grammars) -> None:
    fields = {f"p{i}": {"type": "string", "pattern": pattern} for i, pattern in enumerate(MANY)}
    node = {"type": "object", "properties": {"name": {"pattern": MANY[0], "type": "string"}, "next": {"$ref": "#"}}}
    for schema in ({"type": "object", "properties": fields}, {"anyOf": list(fields.values())}, node):
        assert not compiled(grammars, Format(json_schema=json.dumps(schema))).only_empty


def nested_patterns(depth: int) -> dict[str, Any]:
    """Of which all must hold at once, though each allOf has but two parts."""
    return {"allOf": [{"pattern": MANY[depth]}, nested_patterns(depth - 1) if depth else {}]}


@pytest.mark.parametrize(
    "schema",
    [
        nested_patterns(12),
        {"$ref": "#/$defs/0", "$defs": {str(i): {"pattern": p, "$ref": f"#/$defs/{i + 1}"} for i, p in enumerate(MANY)}
         | {"20": {}}},
        {"allOf": [{"$ref": f"#/$defs/{i}"} for i in range(20)],
         "$defs": {str(i): {"properties": {"a": {"items": {"pattern": p}}}} for i, p in enumerate(MANY)}},
        {"properties": {"a": {"allOf": [{"format": f} for f in ("uri", "email", "ipv6", "hostname", "uuid", "date")]}}},
        {"anyOf": [{"pattern": MANY[0]}], "oneOf": [{"pattern": MANY[1]}], "allOf": [{"pattern": MANY[2]}] * 2,
         "pattern": MANY[3]},
    ],
    ids=range(5),
)  # fmt: skip
def test_patterns_that_may_meet_are_found_wherever_they_are(grammars: Grammars, schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="may have to hold at once"):
        compiled(grammars, Format(json_schema=json.dumps(schema)))


def random_schema(rng: random.Random, depth: int = 3) -> Any:
    """Of all keywords, with values of which some are wrong."""
    if depth == 0 or rng.random() < 0.1:
        return rng.choice(
            [{}, True, {"type": "integer"}, {"type": "string", "maxLength": 3}, {"const": 1}, {"type": "null"}]
        )
    inner = lambda: random_schema(rng, depth - 1)  # noqa: E731
    count = rng.randrange(4)
    keywords: list[tuple[str, Any]] = [
        ("type", rng.choice(["object", "array", "string", "number", "integer", ["null", "boolean"], "thing", 3])),
        ("properties", {f"p{i}": inner() for i in range(count)}),
        ("required", rng.sample(["p0", "p1", "q"], min(count, 3))),
        ("additionalProperties", rng.choice([False, inner()])),
        ("patternProperties", {rng.choice(["^x", "[0-9]+$", "("]): inner()}),
        ("items", inner()),
        ("prefixItems", [inner() for _ in range(count)]),
        ("minItems", count),
        ("maxItems", rng.choice([count + 1, 10**9, -1])),
        ("anyOf", [inner() for _ in range(count)]),
        ("oneOf", [inner() for _ in range(count)]),
        ("allOf", [inner() for _ in range(count)]),
        ("$ref", rng.choice(["#", "#/$defs/d", "#/properties/p0", "#/nowhere", "http://x"])),
        ("$defs", {"d": inner()}),
        ("enum", rng.choice([[1, "a", None], [], [[1], {"b": 2}]])),
        ("const", rng.choice([0, "x", [1]])),
        ("minimum", rng.choice([0, -5.5, 1e300, "0"])),
        ("maximum", rng.choice([10, 1e308])),
        ("multipleOf", rng.choice([1, 0.01, 7, 0])),
        ("minLength", count),
        ("maxLength", rng.choice([count, 10**9])),
        ("pattern", rng.choice(["^a+$", "(a|b)*a(a|b){9}", "[", "x{3}"])),
        ("format", rng.choice(["date", "email", "uuid", "poem"])),
        ("minProperties", count),
        ("not", inner()),
        ("if", inner()),
        ("uniqueItems", True),
        ("description", "words"),
    ]
    return dict(rng.sample(keywords, rng.randint(1, 4)))


def test_random_schemas_are_refused_or_kept_to(tokenizer: Tokenizer, grammars: Grammars) -> None:
    rng = random.Random(5)
    refused = kept = 0
    for _ in range(160):
        schema = random_schema(rng)
        try:
            grammar = compiled(grammars, Format(json_schema=json.dumps(schema)))
        except InvalidRequest as error:
            assert error.field == "format.json_schema" and error.problem
            refused += 1
            continue
        text = walk(tokenizer, grammar, rng, limit=120)
        if text is not None and len(set(re.findall(r'"([^"]*)" ?:', text))) == text.count('":') + text.count('" :'):
            kept += 1
            assert jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)), (schema, text)
    assert refused > 20 and kept > 20


def test_the_same_format_is_compiled_once_while_it_is_used(
    formats: OutputFormats, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(output_formats, "compiled", lambda *args: made.append(args[1]) or compiled(*args))
    monkeypatch.setattr(output_formats, "MAX_LIVE", MAX_KEPT + 2)

    async def ask() -> None:
        first, again = await asyncio.gather(*(formats.grammar(Format(regex="a+")) for _ in range(2)))
        held = await formats.grammar(Format(regex="held"))
        for index in range(MAX_KEPT):
            await formats.grammar(Format(regex=f"x{index}"))
        assert await formats.grammar(Format(regex="held")) is held, "not kept, but in use"
        count = len(made)
        held.broken = True
        assert await formats.grammar(Format(regex="held")) is not held
        assert len(made) == count + 1
        with pytest.raises(QueueFull, match="different formats are under way"):
            users = [await formats.grammar(Format(regex=f"y{index}")) for index in range(MAX_KEPT + 3)]
            assert users
        with pytest.raises(InvalidRequest):
            await formats.grammar(Format(regex="("))
        assert first is not None and again is not None

    asyncio.run(ask())
