"""Masks over vocabularies of several kinds, against the texts of the tokens; and what is refused, and how fast."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from model_directories import tiny_tokenizer
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from hotshoe.server.errors import InvalidRequest, UnsupportedModel
from hotshoe.server.model.grammar import Grammar, GrammarState, advance
from hotshoe.server.model.grammars import Grammars, deep_executor
from hotshoe.server.model.tokenizer import Tokenizer

PIECES = [
    "<unk>",
    "<s>",
    "</s>",
    *(f"<0x{byte:02X}>" for byte in range(256)),
    "▁",
    "▁a",
    "a",
    "b",
    "ab",
    "é",
    "▁b",
    "abc",
]
LETTERS = [*"▁abcé"]


def byte_fallback() -> Tokenizer:
    """As SentencePiece's models have it, with a row of padding behind its tokens."""
    vocabulary = {piece: i for i, piece in enumerate(PIECES)} | {"c": len(PIECES)}
    merges = [("▁", "a"), ("a", "b"), ("▁", "b"), ("ab", "c")]
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), eos_token_ids=[2, 9999])


def allowed(state: GrammarState, size: int) -> set[int]:
    return set(np.flatnonzero(state.allowed(size).numpy()).tolist())


def token(tokenizer: Tokenizer, piece: str) -> int:
    return int(tokenizer._tokenizer.convert_tokens_to_ids(piece))


def test_tokens_of_several_characters_and_bytes() -> None:
    tokenizer = byte_fallback()
    size = tokenizer.vocab_size + 5
    grammar = Grammars(tokenizer, vocab_size=size).regex("f", "a ?b|(é|ü)c?")
    state = grammar.begin([2])
    first = {"a", "ab", "é", "<0x61>", "<0xC3>"}
    assert allowed(state, size) == {token(tokenizer, piece) for piece in first}
    advance([(state, token(tokenizer, "<0xC3>"))])
    assert allowed(state, size) == {token(tokenizer, piece) for piece in ("<0xA9>", "<0xBC>")}
    advance([(state, token(tokenizer, "<0xBC>"))])
    assert allowed(state, size) == {2, token(tokenizer, "c"), token(tokenizer, "<0x63>")} and not state.over
    advance([(state, token(tokenizer, "c"))])
    assert state.over and not state.problem
    other = grammar.begin([2])
    advance([(other, token(tokenizer, "a"))])
    assert allowed(other, size) == {token(tokenizer, p) for p in ("▁", "▁b", "b", "<0x20>", "<0x62>")}


@pytest.mark.parametrize("size", [260, 300, 320])  # the tokenizer's own, with a part of a mask's word, and without
def test_what_ends_a_text_is_allowed_where_it_may_end(size: int) -> None:
    tokenizer = Tokenizer(tiny_tokenizer(), eos_token_ids=[256, 258])
    grammar = Grammars(tokenizer, vocab_size=size).regex("f", "ab*")
    b = token(tokenizer, "b")
    state, forever = grammar.begin([256, 258, 259]), grammar.begin([])
    assert allowed(state, size) == {token(tokenizer, "a")}
    advance([(state, token(tokenizer, "a")), (forever, token(tokenizer, "a"))])
    assert allowed(state, size) == {b, 256, 258, 259} and allowed(forever, size) == {b}
    assert set(np.flatnonzero(state.allowed(size, banned=[256, 258]))) == {b, 259}
    assert set(np.flatnonzero(forever.allowed(size, banned=[b]))) == {b}, "never none"


def test_forced_texts_are_tokens_as_the_tokenizer_makes_them() -> None:
    tokenizer = byte_fallback()
    state = Grammars(tokenizer, vocab_size=tokenizer.vocab_size).regex("f", "abc ab(a|b)").begin([2])
    drawn: list[str] = []
    while len(allowed(state, tokenizer.vocab_size)) == 1:
        (one,) = allowed(state, tokenizer.vocab_size)
        drawn.append(PIECES[one])
        advance([(state, one)])
    assert drawn[0] == "abc"


@pytest.mark.parametrize("pretty", [None, 1, 2, 8, "\t"])
def test_json_may_be_laid_out_but_not_go_on_with_blanks(pretty: int | str | None) -> None:
    tokenizer = Tokenizer(tiny_tokenizer(), eos_token_ids=[256])
    grammars = Grammars(tokenizer, vocab_size=300)
    grammar = grammars.json("f", '{"type": "object", "properties": {"a": {"items": {"type": "integer"}}}}')
    value = {"a": [1, 22, {"x": None}["x"] or 3], "other": {"b": [True, "é\n\\"]}}
    assert takes(tokenizer, grammar, json.dumps(value, indent=pretty, ensure_ascii=False))
    for blanks in ("  ", "\n\n", "\n" + 41 * " ", "\r"):
        assert not takes(tokenizer, grammar, '{"a":[1,' + blanks + "2]}")
    assert takes(tokenizer, grammar, '{"a":[1,2]}') and not takes(tokenizer, grammar, ' {"a":[1,2]}')


def takes(tokenizer: Tokenizer, grammar: Grammar, text: str) -> bool:
    state = grammar.begin([256])
    for one in tokenizer.encode(text, add_special_tokens=False):
        if one not in allowed(state, 300):
            return False
        advance([(state, one)])
    return state.over or 256 in allowed(state, 300)


def test_a_base_without_an_end_of_text_or_with_unknown_tokens_is_told() -> None:
    endless = Tokenizer(tiny_tokenizer(), eos_token_ids=())
    endless.eos_token_ids = frozenset()
    words = Backend(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    unknown = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>"), eos_token_ids=())
    for tokenizer, reason in ((endless, "no end of text"), (unknown, "decoder type")):
        grammars = Grammars(tokenizer, vocab_size=300)
        for _ in range(2):
            with pytest.raises(UnsupportedModel, match=reason):
                grammars.regex("f", "a")


CHAIN = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(3000)) + 'r3000: "a"\n'
OBJECTS = {
    "$ref": "#/$defs/a0",
    "$defs": {f"a{i}": {"required": ["x"], "properties": {"x": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(700)}
    | {"a700": {"type": "string"}},
}


def test_what_leads_on_thousands_deep_has_the_stack_for_it(tmp_path: Path) -> None:
    grammars = Grammars(Tokenizer(tiny_tokenizer(), eos_token_ids=[256]), vocab_size=300)
    before = threading.stack_size()
    executor = deep_executor("deep", initializer=int)
    assert threading.stack_size() == before
    try:
        assert executor.submit(grammars.lark, "f", CHAIN).result().begin([]).problem == ""
        assert executor.submit(grammars.json, "f", json.dumps(OBJECTS)).result().begin([]).problem == ""
    finally:
        executor.shutdown()


@pytest.mark.parametrize(
    "kind, text, problem",
    [
        ("regex", "(", "unclosed group"),
        ("regex", "(?=a)b", "look-around"),
        ("regex", r"(a)\1", "backreferences"),
        ("regex", r"\bword", "lookarounds"),
        ("regex", "a{0}", "allows none"),
        ("regex", "(" * 5000 + "a" + ")" * 5000, "nest"),
        ("json", '{"type": "foo"}', "Invalid type: foo"),
        ("json", '{"uniqueItems": true, "type": "array"}', "uniqueItems"),
        ("json", '{"type": "string", "format": "poem"}', "poem"),
        ("json", '{"$ref": "http://example.org/schema"}', "not present"),
        ("json", '{"minimum": 5, "maximum": 3, "type": "integer"}', "Unsatisfiable"),
        ("json", '{"oneOf": [{"type": "integer"}, {"type": "number"}]}', "oneOf"),
        ("json", '{"allOf": [{"$ref": "#"}], "type": "object"}', "circular"),
        ("json", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}', ""),
        ("lark", "start: (", ""),
        ("lark", "start: a", "a"),
        ("lark", "start: " + "(" * 9000 + '"a"' + ")" * 9000, "too deeply nested"),
        ("lark", "start: R0\n" + "".join(f"R{i}: R{i + 1} R{i + 1}\n" for i in range(60)) + 'R60: "a"', "too big"),
    ],
)
def test_what_is_refused_is_refused_soon(kind: str, text: str, problem: str) -> None:
    grammars = Grammars(Tokenizer(tiny_tokenizer(), eos_token_ids=[256]), vocab_size=300)
    grammars.warm()
    start = time.thread_time()
    with pytest.raises(InvalidRequest) as refused:
        getattr(grammars, kind)("format.this", text)
    assert refused.value.field == "format.this" and problem in refused.value.problem
    assert "\n" not in refused.value.problem and len(refused.value.problem) <= 300
    assert time.thread_time() - start < 5.0
