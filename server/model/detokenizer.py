"""Token ids of one answer, as they come, to text that may be shown: whole characters, and nothing of a stop string."""

from collections.abc import Sequence
from typing import Protocol

INCOMPLETE = "\ufffd"  # what bytes that are not, or not yet, a character decode to
MAX_PENDING_TOKENS = 16  # a character has four bytes at most: what has not become text by then never will
CONTEXT_TOKENS = 6


class Decoding(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, token_ids: Sequence[int]) -> str: ...


class Detokenizer:
    """Decodes incrementally. The parts that it gives, joined, are what decoding all tokens at once would give, up to
    the first stop string.

    Each call decodes a short window: the tokens that last became text, for tokenizers that treat the first token
    differently (a leading space is dropped, say), and those that came after.

    Attributes:
        stopped_by: the stop string that was found; from then on there is no more text.
    """

    def __init__(self, tokenizer: Decoding, stop: Sequence[str] = (), *, context: Sequence[int] = ()) -> None:
        """`context` is the end of the prompt: with it, an answer that begins with a space keeps it."""
        self.stopped_by: str | None = None
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._window = list(context[-CONTEXT_TOKENS:])
        self._known = len(self._window)  # tokens of the window whose text is complete
        self._shown = len(_complete(tokenizer.decode(self._window))) if self._window else 0  # characters of its text
        self._held = ""  # complete text that may begin a stop string

    def push(self, token_ids: Sequence[int], *, may_stop: bool = True) -> str:
        """Adds tokens; gives the text that is certain now, perhaps none. Unless it `may_stop`, all of the text is."""
        if self.stopped_by is not None or not token_ids:
            return ""
        self._window += token_ids
        text = self._tokenizer.decode(self._window)
        complete = _complete(text)
        if len(self._window) - self._known > MAX_PENDING_TOKENS:
            complete = text
        new = complete[self._shown :]
        self._shown = max(self._shown, len(complete))
        if new and complete == text:
            self._window = self._window[self._known :]
            self._known = len(self._window)
            self._shown = len(self._tokenizer.decode(self._window))
        if not may_stop:
            text, self._held = self._held + new, ""
            return text
        return self._release(new)

    def flush(self) -> str:
        """The answer has ended: gives what was held back, unfinished characters as U+FFFD."""
        if self.stopped_by is not None:
            return ""
        rest = self._tokenizer.decode(self._window)[self._shown :] if self._window else ""
        text = self._release(rest) + self._held
        self._window, self._known, self._shown, self._held = [], 0, 0, ""
        return text

    def _release(self, new: str) -> str:
        """Takes complete text; gives what is before the first stop string, or cannot begin one."""
        if not new or not self._stop:
            return new
        text, self._held = self._held + new, ""
        found = [(start + len(stop), start, stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        if found:  # the one that is whole first, however the text came in parts
            _, start, self.stopped_by = min(found)
            return text[:start]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _complete(text: str) -> str:
    return text.rstrip(INCOMPLETE)


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that begins `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
