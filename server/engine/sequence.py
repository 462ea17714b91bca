"""One answer of a request (or one choice to score) on its way through the engine."""

import enum
import math
from collections.abc import Iterator
from collections.abc import Sequence as Items
from itertools import pairwise

from hotshoe.registry.formats.lowered import TokenFactors
from hotshoe.server.adapters.placed_adapter import Beyond, SequenceTerms
from hotshoe.server.engine.prefix_cache import VIRTUAL_TOKEN
from hotshoe.server.engine.replaced_rows import CombinedRows, combined_rows
from hotshoe.server.engine.request import Request, TokenLogprob
from hotshoe.server.engine.sampler import SamplingState

WeightedFactors = tuple[TokenFactors, float]


class SequenceStatus(enum.Enum):
    """Where a sequence is; only a running one holds a block table and references on adapters."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


class Sequence:
    """Tokens, how many of their positions are computed, and what a running sequence holds.

    A position is where a row stands in the key-value cache:

        0 … prefix_tokens−1                learned keys and values of the adapters
        … virtual_tokens−1                 learned embeddings of the adapters
        virtual_tokens + i                 tokens[i]

    Attributes:
        order: (arrival number of the request, answer index): the smaller one is never preempted for the larger.
        leader: the sibling that computes the shared prompt first; None for that sibling itself.
        table: its block table; None unless running.
        computed: positions whose keys and values are in the cache.
        far: whether those are turned as the model turns a sequence of more positions than it was first trained on.
        stack: (adapter_slot, weight) of each adapter; empty unless running.
        starts: from which position on each adapter acts; infinite if the prompt does not call it up.
        embedding_rows, head_rows: what its adapters put in place of the base's.
        embedding_updates, head_updates: what they add to them, and times what.
        grammar: where its text stands in what the request's must be; None if it may be any. Outlives preemption.
        ending_ids: tokens that end it.
        beyond: what its adapters have that a decoder may compute in a pass of its own.
    """

    def __init__(
        self, request: Request, index: int, *, order: tuple[int, int], leader: "Sequence | None", eos: Items[int]
    ) -> None:
        self.request = request
        self.index = index
        self.order = order
        self.leader = leader
        self.status = SequenceStatus.WAITING
        self.num_prompt = len(request.prompt_token_ids)
        self.tokens = [*request.prompt_token_ids, *(request.choices[index] if request.choices else ())]
        self.adapter_keys = tuple(use.key for use in request.adapters)
        self.eos_token_ids = frozenset(() if request.stopping.ignore_eos else eos)
        self.ending_ids = self.eos_token_ids | request.stopping.stop_token_ids
        self.grammar = None if request.grammar is None else request.grammar.begin(sorted(self.ending_ids))
        self.sampling = SamplingState(
            request.sampling,
            prompt=request.prompt_token_ids,
            answer_index=index,
            ending_ids=sorted(self.ending_ids),
            min_new_tokens=request.stopping.min_new_tokens,
            grammar=self.grammar,
        )

        self.table: int | None = None
        self.computed = 0
        self.far = False
        self.page_keys: list[bytes] = []  # the prefix cache's, of its first pages, as far as they were asked for
        self.offered_pages = 0  # leading pages that were taken from, or given to, the prefix cache
        self.stack: tuple[tuple[int, float], ...] = ()
        self.starts: tuple[float, ...] = (0,) * len(self.adapter_keys)
        self.terms: tuple[SequenceTerms, ...] = ()
        self.embedding_rows: CombinedRows | None = None
        self.head_rows: CombinedRows | None = None
        self.embedding_updates: tuple[WeightedFactors, ...] = ()
        self.head_updates: tuple[WeightedFactors, ...] = ()
        self.beyond: frozenset[Beyond] = frozenset()
        self.prefix_tokens = 0
        self.virtual_tokens = 0

        self.wants_prompt_logprobs = index == 0 and request.prompt_logprobs is not None
        self.known_logprobs: list[TokenLogprob] = []  # of the prompt, or of the choice, as far as computed
        self.prompt_computed = False  # once, and its full pages were cached
        self.tried_at = -1  # the scheduler's change count when it last could not start
        self.lacked_pages = False  # then: for want of pages
        self.lacked_room = False  # then: for want of room on the device, where its adapters must be
        self.overtaken = 0  # by sequences that started while it was the first to wait for an adapter slot
        self.charged = 0 if index == 0 else self.num_prompt  # input tokens its tenant was charged; n share one prompt
        self._num_input = len(self.tokens)

        self.started: float | None = None  # time.monotonic() seconds
        self.first_token: float | None = None
        self.cached_prompt_tokens = 0

    @property
    def scores(self) -> bool:
        """Whether its tokens are all given, and only their log-probabilities wanted."""
        return bool(self.request.choices)

    @property
    def output(self) -> list[int]:
        """The tokens after the prompt."""
        return self.tokens[self.num_prompt :]

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    @property
    def target(self) -> int:
        """Positions that must be computed before its next token, or its score, is known."""
        return self.virtual_tokens + len(self.tokens) - (1 if self.scores else 0)

    @property
    def max_positions(self) -> int:
        """Positions that it can come to hold; the last token's is never computed."""
        new = 0 if self.scores else self.request.stopping.max_new_tokens - self.num_output
        return self.virtual_tokens + len(self.tokens) + new - 1

    @property
    def first_logit_position(self) -> float:
        """The first position whose logits are wanted for a token that is known already; infinite if there is none."""
        if self.scores:
            return self.virtual_tokens + self.num_prompt - 1
        return self.virtual_tokens if self.wants_prompt_logprobs else math.inf

    @property
    def may_start(self) -> bool:
        """False while the sibling that computes the shared prompt is still at it."""
        leader = self.leader
        return leader is None or leader.prompt_computed or leader.status is SequenceStatus.FINISHED

    @property
    def shared_positions(self) -> int:
        """How many leading positions its siblings have too: all of whose logits nobody wants."""
        return int(min(self.target - 1, self.first_logit_position))

    @property
    def has_siblings(self) -> bool:
        return self.request.num_answers > 1

    def turn(self, *, far: bool) -> None:
        """What it computes from now on is turned so; nothing of it is in the cache yet."""
        if far != self.far:
            self.far = far
            self.page_keys.clear()

    def take_charge(self, end: int) -> int:
        """How many input tokens before position `end` are not charged yet; they are now."""
        charged, self.charged = self.charged, max(self.charged, min(end - self.virtual_tokens, self._num_input))
        return self.charged - charged

    def attach(self, adapter_slots: Items[int], terms: Items[SequenceTerms]) -> None:
        """Its adapters are on the device: their slots, what they put before the prompt, and where they begin to act."""
        self.stack = tuple(zip(adapter_slots, (use.weight for use in self.request.adapters), strict=True))
        self.terms = tuple(terms)
        prefixes = (soft.kv_prefix for soft in terms)
        embeddings = (soft.prompt_embeddings for soft in terms)
        self.prefix_tokens = sum(prefix.length for prefix in prefixes if prefix is not None)
        self.virtual_tokens = self.prefix_tokens + sum(e.shape[0] for e in embeddings if e is not None)
        weighted = [(part, use.weight) for part, use in zip(terms, self.request.adapters, strict=True)]
        self.embedding_rows = combined_rows([(p.embedding_rows, c) for p, c in weighted if p.embedding_rows])
        self.head_rows = combined_rows([(p.head_rows, c) for p, c in weighted if p.head_rows])
        self.embedding_updates = tuple((p.embedding_update, c) for p, c in weighted if p.embedding_update is not None)
        self.head_updates = tuple((p.head_update, c) for p, c in weighted if p.head_update is not None)
        self.beyond = frozenset[Beyond]().union(*(part.beyond for part in terms))
        self.starts = tuple(0 if part.invocation is None else self._last_place_of(part.invocation) for part in terms)

    def detach(self) -> None:
        """Its adapters are no longer held, and nothing of it is in the cache that it could count on."""
        self.stack = ()
        self.terms = ()
        self.embedding_rows = self.head_rows = None
        self.embedding_updates = self.head_updates = ()
        self.table = None
        self.computed = 0
        self.known_logprobs.clear()

    def stacks(self, start: int, end: int) -> Iterator[tuple[int, int, tuple[tuple[int, float], ...]]]:
        """Parts of positions start … end−1, and the part of the stack that acts there."""
        if not any(self.starts):  # as mostly
            yield start, end, self.stack
            return
        bounds = sorted({start, end, *(int(begin) for begin in self.starts if start < begin < end)})
        for first, last in pairwise(bounds):
            yield first, last, tuple(u for u, begin in zip(self.stack, self.starts, strict=True) if begin <= first)

    def append(self, token_id: int) -> None:
        """Adds a drawn token."""
        self.tokens.append(token_id)
        self.sampling.add(token_id)

    def tokens_at(self, start: int, end: int) -> list[int]:
        """The tokens of positions start … end−1; `VIRTUAL_TOKEN` where a soft prompt stands."""
        virtual = min(end, self.virtual_tokens) - start
        if virtual <= 0:
            return self.tokens[start - self.virtual_tokens : end - self.virtual_tokens]
        return [VIRTUAL_TOKEN] * virtual + self.tokens[: max(0, end - self.virtual_tokens)]

    def _last_place_of(self, token_ids: Items[int]) -> float:
        """The position where these tokens stand in the prompt for the last time, infinite if they do not."""
        prompt, wanted = self.tokens[: self.num_prompt], list(token_ids)
        for index in range(len(prompt) - len(wanted), -1, -1):
            if prompt[index : index + len(wanted)] == wanted:
                return self.virtual_tokens + index
        return math.inf
