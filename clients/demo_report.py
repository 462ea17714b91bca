"""What the demo showed, and where the server fell short of what was expected of it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Published:
    """A demo adapter in the registry."""

    name: str
    kind: str
    digest: str
    size_bytes: int


@dataclass(slots=True)
class Stream:
    """One running answer. `adapter` is the name of the adapter asked, "" for the base model alone."""

    adapter: str
    sampled: bool
    text: str = ""
    digests: tuple[str, ...] = ()
    tokens: int = 0
    done: bool = False


@dataclass(frozen=True, slots=True)
class Stack:
    """Several adapters on one request: weight by name, and the answer."""

    weights: dict[str, float]
    stream: Stream


@dataclass(frozen=True, slots=True)
class Merged:
    """An adapter that the server made of two others: weight by their names, what it is called, and its answer."""

    weights: dict[str, float]
    digest: str
    parents: tuple[str, ...]  # digests, by its manifest
    energy_kept: float
    stream: Stream


@dataclass(frozen=True, slots=True)
class TagMove:
    """What happened when a tag moved under a running stream."""

    old_digest: str
    new_digest: str
    tokens_before: int  # of the running stream, when the tag moved
    running: Stream
    later: Stream
    stale_move_refused: bool


@dataclass(frozen=True, slots=True)
class StepProof:
    """What /metrics says of the steps that ran: how many, and how many held so many different adapters or more."""

    steps: int
    steps_with_several: int
    most_adapters_at_least: int


@dataclass(slots=True)
class DemoReport:
    """Everything that the demo showed."""

    base_model: str = ""
    adapters: list[Published] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0
    move: TagMove | None = None
    stacks: list[Stack] = field(default_factory=list)
    merged: Merged | None = None
    proof: StepProof | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


def shortcomings(report: DemoReport) -> Iterator[str]:
    """What the demo expected and did not see, one sentence each."""
    digests = {adapter.name: adapter.digest for adapter in report.adapters}
    plain = {stream.text for stream in report.streams if not stream.adapter and not stream.sampled}
    for stream in report.streams:
        who = stream.adapter or "the base model"
        expected = (digests[stream.adapter],) if stream.adapter else ()
        if stream.digests != expected:
            yield f"{who} answered as {stream.digests}, published was {expected}"
        if not stream.text.strip():
            yield f"{who} answered nothing"
        if stream.adapter and not stream.sampled and stream.text in plain:
            yield f"{who} answered as the base model alone does"
    for stack in report.stacks:
        if stack.stream.digests != tuple(digests[name] for name in stack.weights):
            yield f"the stack {stack.stream.adapter} answered as {stack.stream.digests}"
    if report.merged is not None:
        yield from _merge_shortcomings(report.merged, digests)
    if report.move is not None:
        yield from _move_shortcomings(report.move)
    if report.proof is not None and report.proof.most_adapters_at_least < 2:
        yield f"no step held two adapters: {report.proof}"


def _merge_shortcomings(merged: Merged, digests: Mapping[str, str]) -> Iterator[str]:
    if merged.parents != tuple(digests[name] for name in merged.weights):
        yield f"the merged adapter names other parents: {merged.parents}"
    if merged.stream.digests != (merged.digest,):
        yield f"the merged adapter answered as {merged.stream.digests}, published was {merged.digest}"
    if not merged.stream.text.strip():
        yield "the merged adapter answered nothing"


def _move_shortcomings(move: TagMove) -> Iterator[str]:
    if move.old_digest == move.new_digest:
        yield "the tag was to move between two different adapters"
    if move.tokens_before >= move.running.tokens:
        yield "the stream had ended before the tag moved"
    if move.running.digests != (move.old_digest,):
        yield f"the running stream answered as {move.running.digests}, not as {move.old_digest}"
    if move.later.digests != (move.new_digest,):
        yield f"the stream after the move answered as {move.later.digests}, not as {move.new_digest}"
    if not move.stale_move_refused:
        yield "a move that expected the old digest was not refused"
