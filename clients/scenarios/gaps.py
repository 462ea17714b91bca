"""Other people's streams, and how even they stay while something else happens to the server."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from hotshoe.clients.bench import percentile
from hotshoe.clients.scenarios.asker import Answer, Ask, Asker, count_errors


@dataclass(slots=True)
class Streams:
    """Streams that run in the background, and the spans of time in which they are looked at, by what happened then."""

    answers: list[Answer]
    spans: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    @contextlib.contextmanager
    def span(self, what: str) -> Iterator[None]:
        """The block's duration is one span of `what`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spans.setdefault(what, []).append((started, time.perf_counter()))

    @property
    def num_messages(self) -> int:
        """How many have come, of all streams."""
        return sum(answer.num_messages for answer in self.answers)

    @property
    def have_ended(self) -> bool:
        return all(answer.ended for answer in self.answers)

    def gaps(self, what: str) -> list[float]:
        """Seconds between tokens of one stream, of all that ended within a span of `what`."""
        spans = self.spans.get(what, [])
        found = [gap for answer in self.answers for gap in answer.parsed().gaps()]
        return [gap for at, gap in found if any(start < at <= end for start, end in spans)]

    def figures(self, what: str) -> dict[str, float]:
        """Percentiles of the gaps, in seconds, and how many tokens there were in a second."""
        gaps = self.gaps(what)
        seconds = sum(end - start for start, end in self.spans.get(what, []))
        percentiles = {f"{what}_p{share:g}": percentile(gaps, share / 100) or 0.0 for share in (50, 95, 99)}
        return {**percentiles, f"{what}_tokens_per_second": len(gaps) / seconds if seconds else 0.0}

    def errors(self) -> dict[str, int]:
        return count_errors(answer for answer in self.answers if answer.ended)


@contextlib.asynccontextmanager
async def background(asker: Asker, asks: Sequence[Ask]) -> AsyncIterator[Streams]:
    """Runs the asks as streams for the block, which begins when each has had its first tokens."""
    streams = Streams([Answer(ask, time.perf_counter()) for ask in asks])
    tasks = [asyncio.create_task(asker.follow(answer)) for answer in streams.answers]
    try:
        while not all(answer.has_begun or answer.ended for answer in streams.answers):
            await asyncio.sleep(0.05)
        yield streams
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
