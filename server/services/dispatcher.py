"""From the engine's thread to the event loop: one call per step, then to each request's own bounded queue."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from hotshoe.server.engine.report import StepReport, StepStats
from hotshoe.server.engine.request import AnswerOutput, Request
from hotshoe.server.errors import ServerError, SlowReader
from hotshoe.server.metrics import Metrics


class OutputQueue:
    """What the engine gave for one request and its handler has not taken yet. Event loop only.

    Belongs to the task that makes it. Holds at most `limit` tokens (None: any number, for handlers that wait for
    nothing else): a handler stuck in a write to a client that does not read is cancelled, and finds why in `error`.
    """

    def __init__(self, request: Request, *, limit: int | None) -> None:
        self.request = request
        self.error: ServerError | None = None
        self.started = False  # anything came
        self.unended = 0  # answers of which the engine, once it has taken the request, says that they ended
        self._limit = limit
        self._owner = asyncio.current_task()
        self._outputs: list[AnswerOutput] = []
        self._tokens = 0
        self._arrived = asyncio.Event()
        self._last_token: dict[int, float] = {}  # answer index → time.monotonic() seconds

    async def take(self) -> list[AnswerOutput]:
        """Waits for output and returns all there is, in order. Raises what `fail` was given."""
        await self._arrived.wait()
        self._arrived.clear()
        if self.error:
            raise self.error
        outputs, self._outputs, self._tokens = self._outputs, [], 0
        return outputs

    def put(self, output: AnswerOutput) -> None:
        """Adds output; too much of it means that nobody reads."""
        if self.error:
            return
        self.started = True
        self._outputs.append(output)
        self._tokens += len(output.token_ids)
        self._arrived.set()
        if self._limit is not None and self._tokens > self._limit:
            self.fail(SlowReader(f"{self._tokens} tokens wait to be read, more than {self._limit}"))
            assert self._owner is not None
            self._owner.cancel()

    def fail(self, error: ServerError) -> None:
        """Drops what is there; the handler gets `error` instead."""
        self._outputs.clear()
        self.error = error
        self._arrived.set()

    def submitted(self) -> None:
        """The engine has taken the request."""
        self.unended = self.request.num_answers

    def seconds_since_last_token(self, output: AnswerOutput, now: float) -> float | None:
        """Since this answer's token before; None for its first."""
        last = self._last_token.get(output.index)
        self._last_token[output.index] = now
        return None if last is None else now - last


class Dispatcher:
    """Hands each step's outputs to their requests. `on_step` runs on the engine's thread, all else on the loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._metrics = metrics
        self._queues: dict[str, OutputQueue] = {}
        self._left: dict[str, OutputQueue] = {}  # which nobody wants, and the engine has not ended yet
        self.stats: StepStats | None = None  # of the latest step
        self.generated_tokens = 0

    def on_step(self, report: StepReport) -> None:
        """Takes a step's outputs; never blocks."""
        try:
            self._loop.call_soon_threadsafe(self._deliver, report)
        except RuntimeError:
            if not self._loop.is_closed():  # at exit nobody is left to read
                raise

    def unused_id(self, request_id: str) -> str:
        """`request_id`, or a variant if a request under way has it: callers may repeat theirs, the engine may not.

        One that was cancelled is under way until the engine's last word of it came, which would else be the next one's.
        """
        candidate, number = request_id, 1
        while candidate in self._queues or candidate in self._left:
            number += 1
            candidate = f"{request_id}~{number}"
        return candidate

    @contextmanager
    def queue(self, request: Request, *, limit: int | None) -> Iterator[OutputQueue]:
        """The request's queue, as long as somebody wants it."""
        queue = self._queues[request.request_id] = OutputQueue(request, limit=limit)
        try:
            yield queue
        finally:
            del self._queues[request.request_id]
            if queue.unended:
                self._left[request.request_id] = queue

    def waiting_adapters(self) -> Counter[tuple[str, str]]:
        """(name, key) of adapters that requests without a token wait for → how many do. Any thread."""
        wanted = frozenset(self.stats.waiting_adapters) if self.stats else frozenset()
        return Counter(
            (use.name, use.key)
            for queue in list(self._queues.values())
            if not queue.started
            for use in queue.request.adapters
            if use.key in wanted
        )

    def fail_all(self, error: ServerError) -> None:
        """The engine will give nothing more: every request ends with `error`."""
        for queue in list(self._queues.values()):
            queue.fail(error)

    def _deliver(self, report: StepReport) -> None:
        now = time.monotonic()
        for output in report.outputs:
            queue = self._queues.get(output.request_id)
            if queue is None:
                self._note_left(output)
                continue
            queue.unended -= output.is_last
            if output.token_ids and not queue.request.choices:
                self.generated_tokens += len(output.token_ids)
                self._metrics.tokens_generated(len(output.token_ids), queue.seconds_since_last_token(output, now))
            queue.put(output)
        self.stats = report.stats
        self._metrics.step(report.stats, ended=sum(output.is_last for output in report.outputs))

    def _note_left(self, output: AnswerOutput) -> None:
        queue = self._left.get(output.request_id)
        if queue is not None and output.is_last:
            queue.unended -= 1
            if not queue.unended:
                del self._left[output.request_id]
