"""How requests end and how the engine does: cancels, deadlines, failing steps, draining, death. Nothing ever leaks."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from residency_house import until
from running_engine import Clock, RunningEngine, make_request

from hotshoe.server.engine import engine as engine_module
from hotshoe.server.engine.request import FinishReason, Request, SamplingParams
from hotshoe.server.errors import Draining, EngineDead, InvalidRequest, PromptTooLong, QueueFull

StartEngine = Callable[..., RunningEngine]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """That of all engines."""
    clock = Clock()
    monkeypatch.setattr(engine_module, "time", clock)
    return clock


@contextmanager
def paused(running: RunningEngine) -> Iterator[None]:
    """Holds the engine before its next step."""
    run, gate = running.engine._runner.run, threading.Event()

    def wait_and_run(plan: Any) -> Any:
        assert gate.wait(200)
        return run(plan)

    running.engine._runner.run = wait_and_run  # type: ignore[method-assign]
    try:
        yield
    finally:
        running.engine._runner.run = run  # type: ignore[method-assign]
        gate.set()


def stay_in_step(running: RunningEngine, number: int) -> None:
    """Lets the step with that number from now take until the engine is stopped."""
    run, steps = running.engine._runner.run, iter(range(1, 10**9))

    def wait_and_run(plan: Any) -> Any:
        if next(steps) == number:
            until(lambda: running.engine._stopping)
        return run(plan)

    running.engine._runner.run = wait_and_run  # type: ignore[method-assign]


def fail_step(running: RunningEngine, number: int, error: BaseException) -> None:
    """Lets the step with that number from now raise, after the decoder has written to the cache."""
    run, steps = running.engine._runner.run, iter(range(1, 10**9))

    def run_or_fail(plan: Any) -> Any:
        logits = run(plan)
        if next(steps) == number:
            raise error
        return logits

    running.engine._runner.run = run_or_fail  # type: ignore[method-assign]


def submitted(running: RunningEngine, *requests: Request) -> tuple[Request, ...]:
    for request in requests:
        running.engine.submit(request)
    return requests


def tokens_of(running: RunningEngine, request: Request) -> int:
    answer = running.answers.get((request.request_id, 0))
    return len(answer.token_ids) if answer else 0


def test_a_running_request_is_cancelled_within_a_step(start_engine: StartEngine) -> None:
    request = make_request([1, 2, 3], max_new_tokens=400)

    def cancel_twice() -> None:
        for _ in range(2):
            running.engine.cancel(request.request_id)

    with start_engine() as running:
        running.before_step(4, cancel_twice)
        (answer,) = running.run(request)
        assert answer.finish_reason is FinishReason.CANCELLED
        assert len(answer.token_ids) == 4 and len(running.reports) == 5, "the step under way was the last"
        running.engine.check_integrity()
        assert running.reports[-1].stats.kv_usage == 0.0


def test_cancelling_what_is_unknown_or_finished_does_nothing(start_engine: StartEngine) -> None:
    with start_engine() as running:
        request = make_request([1])
        running.run(request)
        running.engine.cancel(request.request_id)
        running.engine.cancel("never seen")
        running.run(make_request([1]))
    assert running.answers[request.request_id, 0].finish_reason is FinishReason.LENGTH
    assert running.answers[request.request_id, 0].outputs_after_end == 0


def test_a_waiting_request_is_cancelled_without_having_run(start_engine: StartEngine) -> None:
    with start_engine(max_running_requests=1) as running:
        with paused(running):
            first, second = submitted(running, make_request([1], max_new_tokens=30), make_request([2]))
            running.engine.cancel(second.request_id)
        running.wait(first, second)
    answer = running.answers[second.request_id, 0]
    assert answer.finish_reason is FinishReason.CANCELLED and not answer.token_ids and answer.times is None
    assert len(running.answers[first.request_id, 0].token_ids) == 30


def test_all_n_answers_are_cancelled_together(start_engine: StartEngine) -> None:
    request = make_request([1, 2], n=4, max_new_tokens=400, sampling=SamplingParams(temperature=1.0))
    with start_engine(max_running_requests=4) as running:
        running.before_step(3, lambda: running.engine.cancel(request.request_id))
        running.run(request)
        running.engine.check_integrity()
    answers = running.all_answers(request)
    assert all(0 < len(answer.token_ids) < 400 for answer in answers)
    assert [answer.finish_reason for answer in answers] == [FinishReason.CANCELLED] * 4
    assert all(answer.terminals == 1 for answer in answers)


@pytest.mark.parametrize("seed", range(2))
def test_random_cancels_and_deadlines_end_each_answer_once_and_leak_nothing(
    start_engine: StartEngine, seed: int
) -> None:
    rng = random.Random(seed)

    def draw(length: int, max_new_tokens: int, limit: float | None = None, deadline: float | None = None) -> Request:
        return make_request(
            [rng.randrange(4) for _ in range(length)],
            max_new_tokens=max_new_tokens,
            n=rng.choice([1, 1, 1, 3]),
            tenant=rng.choice("ab"),
            sampling=SamplingParams(temperature=rng.choice([0.0, 1.0]), seed=rng.randrange(99)),
            stopping={"time_limit_seconds": limit},
            deadline=deadline,
        )

    requests = [draw(25, 30) for _ in range(20)]  # of which the cache holds three
    for _ in range(180):
        limit = rng.choice([None, None, 0.05, 1.0])
        deadline = rng.choice([None, None, None, time.monotonic() + 1.5 * rng.random()])
        requests.append(draw(rng.randint(1, 30), rng.randint(1, 30), limit, deadline))
    with start_engine(max_running_requests=8, max_step_tokens=24, kv_tokens=200) as running:
        with paused(running):
            submitted(running, *requests[:20])
            running.engine.cancel(requests[3].request_id)
        running.wait_until(lambda: running.total("preemptions") > 0)
        for request in requests[20:]:
            submitted(running, request)
            if rng.random() < 0.5:
                running.engine.cancel(rng.choice(requests).request_id)
            if rng.random() < 0.1:
                time.sleep(0.003)
        running.wait(*requests)
        running.engine.check_integrity()
        assert running.engine.drained()
    assert len(running.answers) == sum(request.n for request in requests)
    assert all(a.terminals == 1 and a.outputs_after_end == 0 and a.error is None for a in running.answers.values())
    reasons = {answer.finish_reason for answer in running.answers.values()}
    assert {FinishReason.CANCELLED, FinishReason.LENGTH} <= reasons
    assert running.reports[-1].stats.running == running.reports[-1].stats.waiting == 0


def test_a_time_limit_gives_what_there_is(start_engine: StartEngine, clock: Clock) -> None:
    with start_engine() as running:
        running.before_step(4, lambda: clock.put_forward(1000))
        (answer,) = running.run(make_request([1], max_new_tokens=500, stopping={"time_limit_seconds": 900.0}))
    assert answer.finish_reason is FinishReason.TIME_LIMIT and len(answer.token_ids) == 4


def test_a_time_limit_runs_while_waiting_too(start_engine: StartEngine, clock: Clock) -> None:
    with start_engine(max_running_requests=1) as running:
        running.before_step(4, lambda: clock.put_forward(1000))
        long = make_request([1], max_new_tokens=100)
        short = make_request([1], stopping={"time_limit_seconds": 900.0})
        running.run(long, short)
    assert running.answers[short.request_id, 0].finish_reason is FinishReason.TIME_LIMIT
    assert running.answers[short.request_id, 0].token_ids == []
    assert len(running.answers[long.request_id, 0].token_ids) == 100


def test_nobody_waits_past_a_deadline(start_engine: StartEngine, clock: Clock) -> None:
    with start_engine(max_running_requests=1) as running:
        running.before_step(4, lambda: clock.put_forward(1000))
        now = time.monotonic()
        requests = [
            make_request([1], max_new_tokens=500, deadline=now + 900, stopping={"time_limit_seconds": 9000.0}),
            make_request([1], max_new_tokens=500, deadline=now + 950),
            make_request([1], deadline=now - 1.0),
        ]
        answers = running.run(*requests)
        running.engine.check_integrity()
    assert [answer.finish_reason for answer in answers] == [FinishReason.CANCELLED] * 3
    assert [len(answer.token_ids) for answer in answers] == [4, 0, 0]


def test_a_deadline_ends_a_prompt_that_is_being_computed(start_engine: StartEngine, clock: Clock) -> None:
    with start_engine(max_step_tokens=16) as running:
        running.before_step(5, lambda: clock.put_forward(1000))
        (answer,) = running.run(make_request([1] * 400, deadline=time.monotonic() + 900))
        assert len(running.reports) == 6, "the work stopped within a step"
        running.engine.check_integrity()
    assert answer.finish_reason is FinishReason.CANCELLED and answer.token_ids == [] and answer.times is None
    assert running.reports[-1].stats.kv_usage == 0.0


def test_a_failing_step_fails_its_requests_and_the_engine_goes_on(start_engine: StartEngine) -> None:
    with start_engine(max_running_requests=2) as running:
        (expected,) = running.run(make_request([5, 6, 7], max_new_tokens=20))
        fail_step(running, 4, RuntimeError("a secret path"))
        requests = [make_request([i, 6, 7], max_new_tokens=20) for i in range(3)]
        answers = running.run(*requests)
        (after,) = running.run(make_request([5, 6, 7], max_new_tokens=20))
        running.engine.check_integrity()
    for answer in answers[:2]:
        assert isinstance(answer.error, EngineDead) and "secret" not in str(answer.error)
        assert answer.terminals == 1 and 0 < len(answer.token_ids) < 20
    assert answers[2].error is None and len(answers[2].token_ids) == 20, "it was not in that step"
    assert after.token_ids == expected.token_ids and after.cached_prompt_tokens == 0, "the cache began anew"


def test_a_device_beyond_recovery_ends_the_engine(start_engine: StartEngine) -> None:
    with start_engine(expect_death=True) as running:
        fail_step(running, 2, RuntimeError("step"))

        def broken() -> None:
            raise RuntimeError("device")

        running.engine._runner.reset = broken  # type: ignore[method-assign]
        first, second = make_request([1], max_new_tokens=50), make_request([2], max_new_tokens=50)
        answers = running.run(first, second)
        assert all(isinstance(answer.error, EngineDead) and answer.terminals == 1 for answer in answers)
        running.engine._thread.join(60)
        assert not running.engine.alive
        with pytest.raises(EngineDead):
            running.engine.submit(make_request([1]))


def test_a_dead_engine_says_so_and_fails_everything(start_engine: StartEngine) -> None:
    with start_engine(expect_death=True, max_running_requests=1) as running:
        fail_step(running, 3, KeyboardInterrupt())
        requests = [make_request([1], max_new_tokens=50), make_request([2])]
        answers = running.run(*requests)
        running.engine._thread.join(60)
        assert not running.engine.alive
        age = running.engine.heartbeat_age_seconds()
        time.sleep(0.02)
        assert running.engine.heartbeat_age_seconds() > age
    assert all(isinstance(answer.error, EngineDead) and answer.terminals == 1 for answer in answers)


def test_a_page_that_leaked_is_found_when_the_engine_falls_idle(start_engine: StartEngine) -> None:
    with start_engine(expect_death=True) as running:
        blocks = running.engine._scheduler.blocks
        table = blocks.open_table()
        assert blocks.grow(table, 1)
        blocks._free_tables.append(table)
        blocks.tables[table] = 0
        blocks._table_pages[table] = 0
        running.engine._inbox.wake()
        running.engine._thread.join(60)
        assert not running.engine.alive
        with pytest.raises(AssertionError):
            running.engine.check_integrity()
        blocks.clear()


def test_the_heart_beats_while_idle_and_stops_with_the_step(
    start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.05)
    with start_engine() as running:
        beats = set()

        def beats_again() -> bool:
            beats.add(running.engine._heartbeat)
            return len(beats) > 5

        until(beats_again)
        assert running.engine.alive
        with paused(running):
            request = make_request([1])
            running.engine.submit(request)
            until(lambda: running.engine.heartbeat_age_seconds() > 1.0)
            assert running.engine.alive
        running.wait(request)
        until(lambda: running.engine.heartbeat_age_seconds() < 0.5)


def test_an_idle_engine_wakes_at_once(start_engine: StartEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 1000.0)
    with start_engine() as running:
        rest, rests = running.engine._inbox.wait, []
        monkeypatch.setattr(running.engine._inbox, "wait", lambda seconds: rests.append(seconds) or rest(seconds))
        for _ in range(5):
            before = len(rests)
            running.run(make_request([1], max_new_tokens=1))
            until(lambda before=before: len(rests) > before)
        assert set(rests) == {1000.0}


def test_a_full_queue_refuses_and_says_when_to_come_back(start_engine: StartEngine) -> None:
    with start_engine(max_running_requests=2, max_waiting_requests=3) as running:
        with paused(running):
            requests = submitted(running, *(make_request([i]) for i in range(5)))
            with pytest.raises(QueueFull) as raised:
                running.engine.submit(make_request([9]))
            assert 0.1 <= raised.value.retry_after_seconds <= 30
        running.wait(*requests)
        running.run(make_request([9]))
    assert all(answer.finish_reason is FinishReason.LENGTH for answer in running.answers.values())


def test_bad_requests_are_refused_before_they_are_queued(start_engine: StartEngine) -> None:
    with start_engine() as running:
        with pytest.raises(PromptTooLong):
            running.engine.submit(make_request([1] * 600))
        with pytest.raises(InvalidRequest, match="vocabulary"):
            running.engine.submit(make_request([10**6]))
        with paused(running):
            (request,) = submitted(running, make_request([1]))
            with pytest.raises(InvalidRequest, match="request_id"):
                running.engine.submit(make_request([1], request_id=request.request_id))
        running.wait(request)
        running.run(make_request([1], request_id=request.request_id))
        running.wait_until(lambda: running.answers[request.request_id, 0].terminals == 2)
    assert running.answers[request.request_id, 0].finish_reason is FinishReason.LENGTH


def test_draining_finishes_what_was_taken(start_engine: StartEngine) -> None:
    with start_engine(max_running_requests=2) as running:
        requests = submitted(running, *(make_request([i], max_new_tokens=30) for i in range(6)))
        running.engine.begin_drain()
        with pytest.raises(Draining):
            running.engine.submit(make_request([1]))
        running.wait(*requests)
        assert running.engine.drained()
    assert all(len(answer.token_ids) == 30 for answer in running.answers.values())


def test_stopping_fails_what_is_not_finished(start_engine: StartEngine) -> None:
    running = start_engine(max_running_requests=1)
    stay_in_step(running, 2)  # so that it ends before they do
    running.engine.start()
    requests = submitted(running, *(make_request([i], max_new_tokens=500) for i in range(3)))
    running.wait_until(lambda: tokens_of(running, requests[0]) > 0)
    running.engine.stop()
    running.engine.stop()
    assert not running.engine.alive and running.engine.drained()
    running.wait(*requests, timeout_seconds=1)
    assert all(isinstance(a.error, Draining) and a.terminals == 1 for a in running.answers.values())
    running.engine.check_integrity()


def test_requests_taken_before_the_start_are_answered_or_failed(start_engine: StartEngine) -> None:
    running = start_engine()
    (request,) = submitted(running, make_request([1]))
    running.engine.stop()
    running.wait(request, timeout_seconds=1)
    assert isinstance(running.answers[request.request_id, 0].error, Draining)


def test_a_report_that_is_not_taken_does_not_stop_the_engine(
    start_engine: StartEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with start_engine() as running:
        take, calls = running.engine._on_step, iter(range(10**9))

        def refuse_once(report: Any) -> None:
            if next(calls) == 0:
                raise RuntimeError("the loop is closed")
            take(report)

        running.engine._on_step = refuse_once
        (answer,) = running.run(make_request([1], max_new_tokens=5))
    assert len(answer.token_ids) == 4 and "not taken" in caplog.text


def test_figures_of_steps_agree_with_what_was_done(start_engine: StartEngine) -> None:
    with start_engine(max_running_requests=2, max_step_tokens=16) as running:
        running.run(*(make_request([i] * 20, max_new_tokens=4) for i in range(4)))
    stats = [report.stats for report in running.reports]
    assert sum(s.prefill_tokens for s in stats) == 80 and sum(s.decode_tokens for s in stats) == 12
    assert all(s.rows == s.prefill_tokens + s.decode_tokens <= 16 for s in stats)
    assert max(s.running for s in stats) == 2 and max(s.waiting for s in stats) == 3
    assert stats[-1].running == stats[-1].waiting == 0 and stats[-1].kv_usage == 0.0
    assert all(0 <= s.kv_usage <= 1 and s.seconds >= 0 for s in stats) and max(s.kv_usage for s in stats) > 0
