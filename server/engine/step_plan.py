"""What one step does: decided by the scheduler, carried out by the runner."""

from dataclasses import dataclass, field

from hotshoe.server.engine.sequence import Sequence
from hotshoe.server.errors import ServerError


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions start … end−1 of one sequence, computed in one step; logits are wanted for the last `num_logits`.

    Every chunk wants one at least: numbers that are not finite show there, and never reach the prefix cache.
    """

    sequence: Sequence
    start: int
    end: int
    num_logits: int
    draws: bool  # the last row's logits are for a token that is not known yet
    decodes: bool  # its one row is the token that the step before drew

    @property
    def num_rows(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class PrefixWrite:
    """Learned keys and values to put into positions start … end−1 of a sequence before the step."""

    sequence: Sequence
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class TailCopy:
    """Positions start … end−1 of a sequence are in that page of the cache, to be copied before the step."""

    sequence: Sequence
    page: int
    start: int
    end: int


@dataclass(slots=True)
class StepPlan:
    """What one step does: copy tails, then write learned prefixes, then compute the chunks."""

    tail_copies: list[TailCopy] = field(default_factory=list)  # their pages may be other sequences' by now
    prefix_writes: list[PrefixWrite] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)  # those of one row first
    failed: list[tuple[Sequence, ServerError]] = field(default_factory=list)  # could not start, and never will
    num_rows: int = 0
    num_decodes: int = 0  # chunks of running sequences that lack one position
    num_logits: int = 0
    num_preemptions: int = 0
    prefix_queries: int = 0  # tokens looked up in the prefix cache
    prefix_hits: int = 0  # tokens found there
