"""The engine: one thread that batches every request it is given, continuously.

Each turn:  take new requests and cancels → plan a step → run it → draw tokens → commit → report, in one call.

`submit`, `cancel` and the like may be called from any thread; everything else happens on the engine's own.
"""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from hotshoe.server.config import EngineConfig
from hotshoe.server.engine.admission import check_request
from hotshoe.server.engine.committer import Committer
from hotshoe.server.engine.inbox import Inbox
from hotshoe.server.engine.intake import Intake
from hotshoe.server.engine.kv_blocks import KvBlocks
from hotshoe.server.engine.live_requests import LiveRequests
from hotshoe.server.engine.outcome import advance_grammars, read_result
from hotshoe.server.engine.report import StepReport, step_stats
from hotshoe.server.engine.request import AnswerOutput, FinishReason, Request
from hotshoe.server.engine.runner import new_runner
from hotshoe.server.engine.scheduler import Scheduler
from hotshoe.server.engine.step_plan import StepPlan
from hotshoe.server.errors import Draining, EngineDead

if TYPE_CHECKING:
    from hotshoe.server.adapters.adapter_places import AdapterPlaces
    from hotshoe.server.adapters.residency import AdapterResidency
    from hotshoe.server.model.decoder import Decoder

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.5  # how long the idle engine sleeps at most: its heartbeat stays fresher than that


class Engine:
    """Runs requests in one continuously changing batch.

    Every answer (of n) and every choice gets outputs with its index, the last of which has a `finish_reason` or an
    `error`: exactly one such output each, whatever happens, unless `submit` itself raised.
    """

    def __init__(
        self,
        *,
        decoder: "Decoder",
        slots: "AdapterPlaces[Any]",
        residency: "AdapterResidency",
        config: EngineConfig,
        kv_tokens: int,
        base_digest: str,
        eos_token_ids: Collection[int],
        on_step: Callable[[StepReport], None],
        tenant_weights: Mapping[str, float] | None = None,
    ) -> None:
        """Takes the key-value cache's memory; nothing runs before `start`.

        Args:
            kv_tokens: of that cache, in whole pages; `config` may leave it open.
            on_step: called by the engine's thread after each step, when an answer ends and when another number of
                answers waits; must be quick.
            tenant_weights: shares of the batch; 1 for each tenant that is not named.
        """
        self.config = config
        self.kv_tokens = kv_tokens
        self._spec = decoder.spec
        self._slots = slots
        self._residency = residency
        self._on_step = on_step
        blocks = KvBlocks(
            num_pages=kv_tokens // config.page_tokens,
            page_tokens=config.page_tokens,
            max_sequences=config.max_running_requests,
            max_table_pages=-(-min(kv_tokens, decoder.spec.max_sequence_length) // config.page_tokens),
        )
        self._scheduler = Scheduler(
            config=config,
            blocks=blocks,
            residency=residency,
            adapter_slots=slots,
            base_digest=base_digest,
            max_sequence_length=decoder.spec.max_sequence_length,
            far_from=decoder.spec.rope.far_from,
            tenant_weights=tenant_weights,
        )
        self._runner = new_runner(decoder, adapter_slots=slots, blocks=blocks)
        self._inbox = Inbox()
        self._intake = Intake(self._inbox, capacity=config.max_running_requests + config.max_waiting_requests)
        self._live = LiveRequests(self._scheduler, eos_token_ids=eos_token_ids, on_finished=self._intake.forget)
        self._committer = Committer(self._scheduler, self._live, residency)
        self._stopping = False
        self._is_dead = False
        self._checked = False  # since something came
        self._waiting_told = 0  # sequences, by the latest report
        self._heartbeat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        residency.on_change = self._note_residency_change

    def start(self) -> None:
        """Starts the engine's thread."""
        self._heartbeat = time.monotonic()
        self._thread.start()

    def stop(self, timeout_seconds: float = 30.0) -> None:
        """Ends the thread after the step under way; what is not finished fails with Draining. May be called twice."""
        self.begin_drain()
        self._stopping = True
        self._inbox.wake()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        else:
            self._end_everything(Draining("the server shut down before it had started"))

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            InvalidRequest, PromptTooLong: it could never be served.
            QueueFull: as many requests are under way as run and wait at most; nothing was queued.
            Draining, EngineDead: nothing is taken any more.
        """
        check_request(
            request,
            self.config,
            kv_tokens=self.kv_tokens,
            vocab_size=self._spec.vocab_size,
            max_sequence_length=self._spec.max_sequence_length,
            adapter_slots=self._slots.num_slots,
        )
        self._intake.take(request.request_id, partial(self._live.accept, request))
        for use in request.adapters:
            self._residency.prefetch(use.key)

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or only its answer of that index, within one step: what has not ended ends as CANCELLED.

        Unknown ids are ignored.
        """
        self._intake.put(request_id, partial(self._live.end, request_id, FinishReason.CANCELLED, index=index))

    def begin_drain(self) -> None:
        """Takes no new requests from now on; those that were taken run to their end."""
        if not self._is_dead:
            self._intake.refuse(lambda: Draining("the server is shutting down"))

    def drained(self) -> bool:
        """Whether every request that was taken has ended."""
        return self._intake.is_empty

    @property
    def alive(self) -> bool:
        """Whether the thread runs: false before `start`, after `stop`, and once an error has ended it."""
        return self._thread.is_alive() and not self._is_dead

    def heartbeat_age_seconds(self) -> float:
        """How long ago the thread last began a turn: the length of a step, or up to half a second when idle."""
        return time.monotonic() - self._heartbeat

    def check_integrity(self) -> None:
        """Raises AssertionError unless pages, block tables and adapter references agree with what is running."""
        if not self.alive:
            self._scheduler.check_integrity()
            return
        done: Future[None] = Future()
        self._inbox.put(partial(self._check_for, done))
        done.result(timeout=60)

    def _run(self) -> None:
        error: Exception = Draining("the server shut down before the request had ended")
        try:
            while not self._stopping:
                if not self._turn():
                    self._rest()
        except BaseException:
            logger.exception("the engine's thread ends")
            self._is_dead = True
            error = EngineDead("the engine has ended")
            self._intake.refuse(lambda: EngineDead("the engine has ended"))
        self._end_everything(error)

    def _turn(self) -> bool:
        """One turn of the engine; False if there was nothing to do."""
        self._heartbeat = started = time.monotonic()
        outputs = self._take_messages() + self._live.expire(started)
        plan = self._scheduler.plan()
        self._residency.pace.set_decoding(plan.num_decodes > 0)
        outputs += self._committer.drop_unstartable(plan)
        if plan.chunks:
            outputs += self._compute(plan)
        if plan.chunks or outputs or len(self._scheduler.waiting) != self._waiting_told:
            self._report(plan, outputs, started)
        if self.config.check_every_step:
            self._scheduler.check_integrity()
        return bool(plan.chunks or outputs)

    def _compute(self, plan: StepPlan) -> list[AnswerOutput]:
        """Runs a plan, draws tokens and commits them; gives the outputs."""
        try:
            outcomes = read_result(plan.chunks, self._runner.run(plan))
            advance_grammars(plan.chunks, outcomes)
        except Exception as error:
            logger.exception("a step of %d rows failed", plan.num_rows)
            return self._recover(plan, error)
        now = time.monotonic()
        self._scheduler.note_step(plan, now - self._heartbeat)
        return self._committer.commit(plan.chunks, outcomes, now)

    def _recover(self, plan: StepPlan, cause: Exception) -> list[AnswerOutput]:
        """After a step that raised: fails the requests that were in it, and begins again with an empty cache."""
        error = EngineDead(f"the step that computed this request failed: {type(cause).__name__}")
        outputs: list[AnswerOutput] = []
        for chunk in plan.chunks:
            outputs += self._live.fail(chunk.sequence.request.request_id, error)
        self._scheduler.reset()
        try:
            self._runner.reset()
        except Exception:
            self._report(plan, outputs, time.monotonic())
            raise
        return outputs

    def _end_everything(self, error: Exception) -> None:
        """Takes the last messages, fails all that has not ended, and says so."""
        self.begin_drain()
        outputs = self._take_messages() + self._live.fail_all(error)
        if outputs:
            self._report(StepPlan(), outputs, time.monotonic())

    def _take_messages(self) -> list[AnswerOutput]:
        return [output for message in self._inbox.take() for output in message()]

    def _rest(self) -> None:
        """Sleeps until there is a message, a request expires, or the heart must beat.

        The books are held against what runs once nobody has come for a while: who comes soon must not wait for it.
        """
        if self._stopping:
            return
        expiry = self._live.next_expiry
        until_expiry = IDLE_SECONDS if expiry is None else max(0.0, expiry - time.monotonic())
        if self._inbox.wait(min(IDLE_SECONDS, until_expiry)):
            self._checked = False
        elif not self._live and not self._checked:
            self._scheduler.check_integrity()
            self._checked = True

    def _report(self, plan: StepPlan, outputs: list[AnswerOutput], started: float) -> None:
        stats = step_stats(plan, self._scheduler, seconds=time.monotonic() - started)
        self._waiting_told = stats.waiting
        try:
            self._on_step(StepReport(outputs, stats))
        except Exception:
            logger.exception("the report of a step was not taken; %d outputs are lost", len(outputs))

    def _note_residency_change(self) -> None:
        self._inbox.put(self._retry_waiting)

    def _retry_waiting(self) -> list[AnswerOutput]:
        self._scheduler.note_change()
        return []

    def _check_for(self, done: "Future[None]") -> list[AnswerOutput]:
        try:
            self._scheduler.check_integrity()
        except AssertionError as error:
            done.set_exception(error)
        else:
            done.set_result(None)
        return []
