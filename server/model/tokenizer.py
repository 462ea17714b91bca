"""Text to token ids and back, and the chat template, through the model's own tokenizer files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hotshoe.server.errors import InvalidRequest, UnsupportedModel
from hotshoe.server.model.checkpoints import read_json

# ends of a turn that some tokenizers have and their configs forget
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>")


class Tokenizer:
    """A fast Hugging Face tokenizer. Calls may come from any thread."""

    def __init__(self, tokenizer: Any, *, eos_token_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_padding()
        self._backend.no_truncation()
        self.vocab_size: int = len(tokenizer)
        known = (tokenizer.convert_tokens_to_ids(text) for text in _TURN_ENDS if text in tokenizer.all_special_tokens)
        own = () if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,)
        self.eos_token_ids: frozenset[int] = frozenset((*eos_token_ids, *own, *known))

    @classmethod
    def from_directory(cls, directory: Path) -> "Tokenizer":
        """Reads any tokenizer files, and the ends of text from generation_config.json and config.json."""
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:  # whatever its class does with what the files say
            reason = " ".join(str(error).split())
            raise UnsupportedModel(f"{directory}: its tokenizer cannot be read: {reason}") from error
        if not hasattr(tokenizer, "backend_tokenizer"):
            raise UnsupportedModel(f"{directory}: {type(tokenizer).__name__} is not a fast tokenizer")
        return cls(tokenizer, eos_token_ids=_eos_token_ids(directory))

    @classmethod
    def from_saved(cls, directory: Path) -> "Tokenizer":
        """Reads what `save` wrote, in half the time: the model's own tokenizer class is not needed again."""
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(directory), local_files_only=True)
        return cls(tokenizer, eos_token_ids=_eos_token_ids(directory))

    def save(self, directory: Path) -> None:
        """Writes it for `from_saved`, the ends of text in generation_config.json."""
        self._tokenizer.save_pretrained(directory)
        ends = json.dumps({"eos_token_id": sorted(self.eos_token_ids)})
        (directory / "generation_config.json").write_text(ends + "\n", encoding="utf-8")

    def to_json(self) -> str:
        """As a tokenizer.json."""
        text: str = self._backend.to_str()
        return text

    @property
    def has_chat_template(self) -> bool:
        return bool(self._tokenizer.chat_template)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The token ids of a text; with `add_special_tokens`, as the model expects a prompt to begin."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; incomplete UTF-8 becomes U+FFFD, ids beyond the vocabulary nothing."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token_id: int) -> str:
        """One token's text, special tokens included."""
        return self.decode([token_id], skip_special_tokens=False)

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's chat template, up to where the assistant is to speak.

        Raises:
            InvalidRequest: the model has no template, or the template refuses these messages.
        """
        from jinja2 import TemplateError

        if not self.has_chat_template:
            raise InvalidRequest("messages", "the base model has no chat template; send a prompt instead")
        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise InvalidRequest("messages", f"refused by the model's chat template: {error}") from error
        return self.encode(text, add_special_tokens=False)


def _eos_token_ids(directory: Path) -> set[int]:
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        if not (directory / name).exists():
            continue
        value = read_json(directory / name).get("eos_token_id")
        ids = [value] if isinstance(value, int) else value or []
        if not (isinstance(ids, list) and all(isinstance(one, int) and one >= 0 for one in ids)):
            raise UnsupportedModel(f"{directory / name}: eos_token_id: expected token ids, not {value!r}")
        found.update(ids)
    return found
