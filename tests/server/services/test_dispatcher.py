import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from hotshoe.server.engine.report import StepReport, StepStats
from hotshoe.server.engine.request import AdapterUse, AnswerOutput, FinishReason, Request, SamplingParams, StopCriteria
from hotshoe.server.errors import EngineDead, SlowReader
from hotshoe.server.metrics import Metrics
from hotshoe.server.services.dispatcher import Dispatcher

STATS = StepStats(1, 0, 0.0, 1, 0, 1, 0, 0, 0, 0, 0.0, ("sha256:1",))


def _request(request_id: str = "r", *adapters: AdapterUse) -> Request:
    return Request(request_id, (1,), SamplingParams(), StopCriteria(max_new_tokens=100), adapters=adapters)


def _report(*outputs: AnswerOutput) -> StepReport:
    return StepReport(list(outputs), STATS)


def _token(token_id: int, request_id: str = "r", index: int = 0) -> AnswerOutput:
    return AnswerOutput(request_id, index, token_ids=[token_id])


def _end(index: int) -> AnswerOutput:
    return AnswerOutput("r", index, finish_reason=FinishReason.CANCELLED)


def _run(body: Callable[[Dispatcher], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        metrics = Metrics()
        metrics._model = {"model_name": "tiny", "engine": "0"}
        await asyncio.wait_for(body(Dispatcher(metrics)), 100)

    asyncio.run(main())


def test_outputs_of_another_thread_arrive_in_order_at_their_request() -> None:
    async def body(dispatcher: Dispatcher) -> None:
        with dispatcher.queue(_request("a"), limit=None) as a, dispatcher.queue(_request("b"), limit=None) as b:

            def engine() -> None:
                for number in range(50):
                    dispatcher.on_step(_report(_token(number, "a"), _token(-number, "b"), _token(0, "unknown")))

            thread = threading.Thread(target=engine)
            thread.start()
            for queue, sign in ((a, 1), (b, -1)):
                got: list[int] = []
                while len(got) < 50:
                    got += [token for output in await queue.take() for token in output.token_ids]
                assert got == [sign * number for number in range(50)]
            thread.join()
        assert dispatcher.generated_tokens == 100

    _run(body)


def test_a_handler_stuck_in_a_write_is_cancelled_once_too_much_waits() -> None:
    async def body(dispatcher: Dispatcher) -> None:
        errors: list[Exception | None] = []

        async def handler() -> None:
            with dispatcher.queue(_request(), limit=8) as queue:
                try:
                    await asyncio.Event().wait()  # a write that nobody reads
                except asyncio.CancelledError:
                    errors.append(queue.error)
                    raise

        task = asyncio.create_task(handler())
        await asyncio.sleep(0)
        for number in range(20):
            dispatcher.on_step(_report(_token(number)))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(errors[0], SlowReader)

    _run(body)


def test_a_reader_that_keeps_up_is_never_slow() -> None:
    async def body(dispatcher: Dispatcher) -> None:
        with dispatcher.queue(_request(), limit=8) as queue:
            for number in range(100):
                dispatcher.on_step(_report(_token(number)))
                if number % 8 == 7:
                    assert [output.token_ids[0] for output in await queue.take()]

    _run(body)


def test_a_dead_engine_ends_every_request() -> None:
    async def body(dispatcher: Dispatcher) -> None:
        with dispatcher.queue(_request("a"), limit=None) as a, dispatcher.queue(_request("b"), limit=8) as b:
            dispatcher.on_step(_report(_token(1, "a")))
            dispatcher.fail_all(EngineDead("gone"))
            for queue in (a, b):
                with pytest.raises(EngineDead):
                    await queue.take()

    _run(body)


def test_ids_under_way_are_not_given_twice() -> None:
    async def body(dispatcher: Dispatcher) -> None:
        assert dispatcher.unused_id("r") == "r"
        with dispatcher.queue(_request("r"), limit=None), dispatcher.queue(_request("r~2"), limit=None):
            assert dispatcher.unused_id("r") == "r~3"
        assert dispatcher.unused_id("r") == "r"

    _run(body)


def test_an_id_is_free_again_once_the_engine_has_ended_all_answers_of_who_had_it() -> None:
    async def body(dispatcher: Dispatcher) -> None:
        with dispatcher.queue(replace(_request("r"), n=2), limit=None) as queue:
            queue.submitted()  # and its caller goes away
        dispatcher.on_step(_report(_token(1), _token(2, index=1), _end(index=1)))
        await asyncio.sleep(0.01)
        assert dispatcher.unused_id("r") == "r~2"
        with dispatcher.queue(_request("r~2"), limit=None) as retried:
            dispatcher.on_step(_report(_end(index=0), _token(3, "r~2")))
            assert [output.token_ids for output in await retried.take()] == [[3]]
        assert dispatcher.unused_id("r") == "r"

    _run(body)


def test_an_id_that_the_engine_refused_is_free_at_once() -> None:
    async def body(dispatcher: Dispatcher) -> None:
        with dispatcher.queue(_request("r"), limit=None):
            pass
        assert dispatcher.unused_id("r") == "r"

    _run(body)


def test_adapters_that_requests_wait_for_are_counted_until_they_start() -> None:
    async def body(dispatcher: Dispatcher) -> None:
        poet, judge = AdapterUse("poet", "poet", "sha256:1"), AdapterUse("judge", "judge", "sha256:2")
        with (
            dispatcher.queue(_request("a", poet), limit=None),
            dispatcher.queue(_request("b", poet, judge), limit=None),
        ):
            dispatcher.on_step(_report())
            await asyncio.sleep(0.01)
            assert dispatcher.waiting_adapters() == {("poet", "sha256:1"): 2}
            dispatcher.on_step(_report(_token(1, "a")))
            await asyncio.sleep(0.01)
            assert dispatcher.waiting_adapters() == {("poet", "sha256:1"): 1}

    _run(body)


def test_an_engine_that_outlives_the_loop_does_not_fail() -> None:
    async def make() -> Dispatcher:
        return Dispatcher(Metrics())

    asyncio.run(make()).on_step(_report(_token(1)))
