"""An engine on its own thread, and everything that it said: for tests of what requests get."""

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from hotshoe.server.adapters.adapter_slots import AdapterSlots
from hotshoe.server.adapters.residency import AdapterResidency
from hotshoe.server.config import EngineConfig
from hotshoe.server.engine.engine import Engine
from hotshoe.server.engine.report import StepReport
from hotshoe.server.engine.request import (
    AdapterUse,
    FinishReason,
    Request,
    RequestTimes,
    SamplingParams,
    StopCriteria,
    TokenLogprob,
)
from hotshoe.server.model.decoder import Decoder

_ids = itertools.count(1)


def make_request(
    prompt: Sequence[int],
    *,
    max_new_tokens: int = 8,
    sampling: SamplingParams | None = None,
    adapters: Sequence[AdapterUse] = (),
    stopping: dict[str, Any] | None = None,
    **fields: Any,
) -> Request:
    """A greedy request that nothing but its length ends, unless told otherwise; with an id of its own."""
    criteria = {"max_new_tokens": max_new_tokens, "ignore_eos": True, **(stopping or {})}
    return Request(
        **{"request_id": f"request-{next(_ids)}", **fields},
        prompt_token_ids=tuple(prompt),
        sampling=sampling or SamplingParams(),
        stopping=StopCriteria(**criteria),
        adapters=tuple(adapters),
    )


class Clock:
    """An engine's `time`, which a test puts forward: nothing then depends on how long a step takes."""

    ahead = 0.0  # seconds

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def put_forward(self, seconds: float) -> None:
        self.ahead += seconds


@dataclass(slots=True)
class Answer:
    """All outputs of one answer, put together."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    cached_prompt_tokens: int = 0
    times: RequestTimes | None = None
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    terminals: int = 0  # outputs that said that nothing follows
    outputs_after_end: int = 0


class RunningEngine:
    """Starts on entering, stops on leaving; leaving also checks that the thread lived and that nothing leaked."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        slots: AdapterSlots,
        residency: AdapterResidency,
        eos_token_ids: Iterable[int] = (),
        expect_death: bool = False,
        **config: Any,
    ) -> None:
        settings: dict[str, Any] = {"kv_tokens": 2048, "page_tokens": 4, "max_step_tokens": 64, **config}
        settings = {"max_running_requests": 16, "check_every_step": True, **settings}
        self.reports: list[StepReport] = []
        self.answers: dict[tuple[str, int], Answer] = {}
        self.decoder = decoder
        self._expect_death = expect_death
        self._changed = threading.Condition()
        self.engine = Engine(
            decoder=decoder,
            slots=slots,
            residency=residency,
            config=EngineConfig(**settings),
            kv_tokens=settings["kv_tokens"],
            base_digest=f"sha256:{'b' * 64}",
            eos_token_ids=frozenset(eos_token_ids),
            on_step=self._note,
        )

    def __enter__(self) -> "RunningEngine":
        self.engine.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        alive = self.engine.alive
        self.engine.stop()
        if kind is None:
            assert alive is not self._expect_death, "the engine's thread had ended" if not alive else "it still lives"
            self.engine.check_integrity()
            assert self.total("preemptions") >= 0

    def run(self, *requests: Request, timeout_seconds: float = 60.0) -> list[Answer]:
        """Submits requests together, waits until all have ended, and gives each one's first answer."""
        with self.engine._inbox.lock:  # so that they meet in one batch
            for request in requests:
                self.engine.submit(request)
        self.wait(*requests, timeout_seconds=timeout_seconds)
        return [self.answers[request.request_id, 0] for request in requests]

    def all_answers(self, request: Request) -> list[Answer]:
        return [self.answers[key] for key in sorted(self.answers) if key[0] == request.request_id]

    def wait(self, *requests: Request, timeout_seconds: float = 60.0) -> None:
        """Waits until every answer of these requests has ended."""
        keys = [(r.request_id, index) for r in requests for index in range(len(r.choices) or r.n)]
        self.wait_until(lambda: all(self._ended(key) for key in keys), timeout_seconds=timeout_seconds)

    def before_step(self, number: int, act: Callable[[], object]) -> None:
        """Holds the engine before its step of that number from now, until another thread has done something."""
        run, steps = self.engine._runner.run, itertools.count(1)

        def act_and_run(plan: Any) -> Any:
            if next(steps) == number:
                actor = threading.Thread(target=act)
                actor.start()
                actor.join()
            return run(plan)

        self.engine._runner.run = act_and_run  # type: ignore[method-assign]

    def wait_until(self, condition: Any, *, timeout_seconds: float = 60.0) -> None:
        """Waits until a condition holds that only the engine's reports can change."""
        with self._changed:
            assert self._changed.wait_for(condition, timeout_seconds), "the engine did not come so far"

    def total(self, figure: str) -> int:
        """The sum of one figure over all steps."""
        return sum(getattr(report.stats, figure) for report in self.reports)

    def _ended(self, key: tuple[str, int]) -> bool:
        return key in self.answers and self.answers[key].terminals > 0

    def _note(self, report: StepReport) -> None:
        with self._changed:
            self.reports.append(report)
            for output in report.outputs:
                answer = self.answers.setdefault((output.request_id, output.index), Answer())
                answer.outputs_after_end += answer.terminals
                answer.token_ids += output.token_ids
                answer.logprobs += output.logprobs
                answer.cached_prompt_tokens = output.cached_prompt_tokens
                answer.times = answer.times or output.times
                if output.prompt_logprobs is not None:
                    assert answer.prompt_logprobs is None, "prompt log-probabilities come once"
                    answer.prompt_logprobs = output.prompt_logprobs
                if output.is_last:
                    answer.terminals += 1
                    answer.finish_reason, answer.error = output.finish_reason, output.error
            self._changed.notify_all()
