"""Compiles grammars over one base's tokens. Takes up to a second and much stack: `deep_executor` has threads for it."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from hotshoe.server.errors import InvalidRequest, UnsupportedModel
from hotshoe.server.model.grammar import Grammar, reason
from hotshoe.server.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLParserLimits
    from llguidance._lib import JsonCompileOptions  # of its stubs alone

# One blank, or a new line and its indentation: what a small model could go on with for ever is not allowed.
WHITESPACE = r" |\n {0,40}|\n\t{0,10}"
JSON_OPTIONS: "JsonCompileOptions" = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_flexible": False,
    "whitespace_pattern": WHITESPACE,
    "coerce_one_of": False,
    "lenient": False,
    "json_allowed_escapes": 'nrbtf\\"u',
    "json_allow_general_unicode_escapes": False,
}
_STACK_BYTES = 256 << 20  # address space, most of it never touched: rules and references may lead on thousands deep
_MASK_THREADS = 4


class Grammars:
    """Compiles for one base. Any thread."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int) -> None:
        """Takes the number of logits of a row; the tokenizer may have fewer tokens."""
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._vocabulary: Any = None
        self._executor: Any = None
        self._problem: UnsupportedModel | None = None

    def warm(self) -> None:
        """Reads the vocabulary, unless that was done: a third of a second, in which no other thread has Python."""
        with self._lock:
            if self._vocabulary is not None or self._problem is not None:
                return
            from llguidance import LLExecutor, LLTokenizer

            size = max(self._vocab_size, self._tokenizer.vocab_size)
            try:
                if not self._eos:
                    raise UnsupportedModel("it has no end of text")
                self._vocabulary = LLTokenizer(self._tokenizer.to_json(), n_vocab=size, eos_token=list(self._eos))
                self._executor = LLExecutor(_MASK_THREADS)
            except BaseException as error:  # a panic over there is no Exception here
                message = f"formats cannot be asked of this base: its tokenizer is not understood: {reason(str(error))}"
                self._problem = UnsupportedModel(message)

    def json(self, field: str, schema: str) -> Grammar:
        """Of a JSON schema, an object. Raises as `lark`."""
        from llguidance import LLMatcher

        try:
            source = LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
        except ValueError as error:
            raise InvalidRequest(field, reason(str(error))) from None
        return self._compile(field, source)

    def regex(self, field: str, pattern: str) -> Grammar:
        """Of a regular expression. Raises as `lark`."""
        from llguidance import LLMatcher

        return self._compile(field, LLMatcher.grammar_from_regex(pattern))

    def lark(self, field: str, text: str) -> Grammar:
        """Of a grammar in llguidance's Lark.

        Raises:
            InvalidRequest: it is wrong, unsupported, too large, or of no text but the empty one; names the field.
            UnsupportedModel: the base's tokenizer is of an unknown kind.
        """
        return self._compile(field, json.dumps({"grammars": [{"lark_grammar": text}]}))

    @property
    def _eos(self) -> tuple[int, ...]:
        return tuple(sorted(token for token in self._tokenizer.eos_token_ids if token < self._tokenizer.vocab_size))

    def _compile(self, field: str, source: str) -> Grammar:
        from llguidance import LLMatcher

        self.warm()
        if self._problem is not None:
            raise self._problem.with_traceback(None)
        matcher = LLMatcher(self._vocabulary, source, log_level=0, limits=_limits())
        first = b"" if matcher.is_error() else matcher.compute_bitmask()
        if matcher.is_error():
            raise InvalidRequest(field, reason(matcher.get_error()))
        words = np.zeros(-(-self._vocabulary.vocab_size // 32), np.uint32)
        words.view(np.uint8)[: len(first)] = np.frombuffer(first, np.uint8)[: words.nbytes]  # it may have a word more
        grammar = Grammar(matcher, words, self._eos, self._executor)
        if grammar.only_empty:
            raise InvalidRequest(field, "expected a format of some text, but it allows none")
        return grammar


def _limits() -> "LLParserLimits":
    """Of one grammar, on the compiling thread: a quarter of a second and some 50 MB at most. On the engine's, of one
    token: some 10 ms of the lexer, 2 of the parser.
    """
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=250_000,
        step_lexer_fuel=100_000,
        step_max_items=30_000,
        max_lexer_states=10_000,
        max_grammar_size=50_000,
        verbose_errors=False,  # they would tell of the answer
    )


def deep_executor(name: str, initializer: Callable[[], None]) -> ThreadPoolExecutor:
    """One thread, whose stack is as deep as compiling may need: a stack that overflows would end the process."""
    before = threading.stack_size(_STACK_BYTES)
    try:
        executor = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=initializer)
        executor.submit(int)  # the thread starts here
    finally:
        threading.stack_size(before)
    return executor
