"""A grammar compiled over the model's tokens, and where one answer stands in it.

llguidance does the work: a token is allowed if some text of the grammar begins with all that was drawn and that token.
Where the grammar leaves the text no choice, it is the token that the tokenizer would have made of it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_WORD_BITS = 32


@dataclass(eq=False, slots=True, weakref_slot=True)
class Grammar:
    """What many answers may share. Any thread.

    Attributes:
        start: llguidance's matcher before the first token; it is only ever copied.
        first: [words] uint32, the tokens that may come first, one bit each; the first end of text's says if none need.
        eos_token_ids: ends of text; there is one at least.
        executor: llguidance's threads, for the masks of many answers.
        broken: an answer has come upon more than the limits allow; others better begin with a new one.
    """

    start: Any
    first: NDArray[np.uint32]
    eos_token_ids: tuple[int, ...]
    executor: Any
    broken: bool = False

    def begin(self, ending_ids: Iterable[int]) -> "GrammarState":
        """An answer's state before its first token; `ending_ids` are what may end it where the grammar may end."""
        return GrammarState(self, ending_ids)

    @property
    def only_empty(self) -> bool:
        """Whether there is no text of it but the empty one."""
        return self.begin(()).over


class GrammarState:
    """Belongs to the engine's thread.

    Attributes:
        over: nothing can follow.
        problem: why it cannot go on, "" while it can.
    """

    __slots__ = ("_ending_ids", "_grammar", "_matcher", "_words", "over", "problem")

    def __init__(self, grammar: Grammar, ending_ids: Iterable[int]) -> None:
        self._grammar = grammar
        self._matcher = grammar.start.deep_copy()
        self._ending_ids = tuple(ending_ids)
        self.problem = ""
        self._set(grammar.first.copy())

    def allowed(self, vocab_size: int, *, banned: Iterable[int] = ()) -> Tensor:
        """[vocab_size] bool, which tokens may come next: never none. Banned ones may, if there are no others."""
        words = self._words
        if banned:
            others = words.copy()
            _clear(others, banned)
            words = others if others.any() else words
        bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=vocab_size)
        return torch.from_numpy(bits.view(np.bool_))

    def _set(self, words: NDArray[np.uint32]) -> None:
        """Takes llguidance's mask, in which every end of text says whether the text may end."""
        eos = self._grammar.eos_token_ids
        may_end = bool(words[eos[0] // _WORD_BITS] >> np.uint32(eos[0] % _WORD_BITS) & np.uint32(1))
        _clear(words, eos)
        self.over = not words.any()
        if may_end:
            for token in self._ending_ids:
                words[token // _WORD_BITS] |= np.uint32(1 << token % _WORD_BITS)
        self._words = words

    def _fail(self) -> None:
        self._grammar.broken = True
        self.problem = reason(self._matcher.get_error())


def advance(moves: Sequence[tuple[GrammarState, int]]) -> None:
    """Each state takes note of the token that was drawn, one that it allowed, and finds out what may come next."""
    open_states: list[GrammarState] = []
    for state, token in moves:
        taken = state._matcher.consume_token(token)
        if not taken or state._matcher.is_error():
            state._fail()
        elif state._matcher.is_stopped():
            state.over = True
        else:
            open_states.append(state)
    if not open_states:
        return
    masks = np.empty((len(open_states), len(open_states[0]._grammar.first)), np.uint32)
    places = [(state._matcher, row) for row, state in enumerate(open_states)]
    executor = open_states[0]._grammar.executor
    executor.unsafe_compute_mask_ptr(places, masks.ctypes.data, masks.strides[0], len(masks))
    for state, words in zip(open_states, masks, strict=True):
        if state._matcher.is_error():
            state._fail()
        else:
            state._set(words)


def reason(error: str) -> str:
    """The line that says what is wrong of what llguidance says."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["it cannot be used"]
    found = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    return found.rpartition("(in regex): ")[2][:300]


def _clear(words: NDArray[np.uint32], token_ids: Iterable[int]) -> None:
    for token in token_ids:
        words[token // _WORD_BITS] &= ~np.uint32(1 << token % _WORD_BITS)
