"""Text to tokens and back, chats, and where an answer ends."""

import json
from pathlib import Path

import pytest
from model_directories import tiny_tokenizer, write_tiny_model

from hotshoe.server.errors import InvalidRequest, UnsupportedModel
from hotshoe.server.model.tokenizer import Tokenizer


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["hello", "héllo 你好\n\n  x", "", "<|im_end|>a"])
def test_text_survives_encoding(directory: Path, text: str) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert max(ids, default=0) < tokenizer.vocab_size == 260


def test_special_tokens_are_skipped_unless_asked_for(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    ids = tokenizer.encode("a<|im_end|>")
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.token_text(ids[-1]) == "<|im_end|>"


def test_ids_beyond_the_vocabulary_have_no_text(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.decode([299, *tokenizer.encode("b")]) == "b"
    assert tokenizer.token_text(299) == ""


def test_part_of_a_character_decodes_to_the_replacement_character(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


def test_a_chat_ends_where_the_assistant_is_to_speak(directory: Path) -> None:
    tokenizer = Tokenizer.from_directory(directory)
    ids = tokenizer.render_chat([{"role": "user", "content": "hi"}])
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected
    assert tokenizer.encode("<|im_end|>")[0] in ids


def test_ends_come_from_the_generation_config_the_config_and_the_tokenizer(directory: Path) -> None:
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": 100}))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "eos_token_id": [101, 102]}))
    assert Tokenizer.from_directory(directory).eos_token_ids == {100, 101, 102, 256, 258}


def test_a_saved_tokenizer_is_the_same(directory: Path, tmp_path: Path) -> None:
    path = directory / "tokenizer.json"
    begins_with_bos = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [257], "tokens": ["<|im_start|>"]}},
    }
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": begins_with_bos}))
    original = Tokenizer.from_directory(directory)
    original.save(tmp_path / "saved")
    saved = Tokenizer.from_saved(tmp_path / "saved")
    assert saved.encode("x") == original.encode("x") == [257, *original.encode("x", add_special_tokens=False)]
    messages = [{"role": "user", "content": "hi"}]
    assert saved.render_chat(messages) == original.render_chat(messages)
    assert saved.eos_token_ids == original.eos_token_ids
    assert saved.vocab_size == original.vocab_size


def test_a_model_without_a_chat_template_says_so() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(InvalidRequest, match="messages: the base model has no chat template"):
        Tokenizer(tokenizer, eos_token_ids=()).render_chat([{"role": "user", "content": "hi"}])


def test_what_a_template_refuses_names_the_messages() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('only the user may speak') }}"
    with pytest.raises(InvalidRequest, match="messages: .*only the user may speak"):
        Tokenizer(tokenizer, eos_token_ids=()).render_chat([{"role": "system", "content": "hi"}])


def test_a_template_runs_in_a_sandbox() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages.__class__.__mro__ }}"
    with pytest.raises(InvalidRequest, match="unsafe"):
        Tokenizer(tokenizer, eos_token_ids=()).render_chat([{"role": "user", "content": "hi"}])


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(UnsupportedModel, match="tokenizer"):
        Tokenizer.from_directory(tmp_path)
