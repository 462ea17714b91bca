"""What scenarios make of times and tokens."""

import pytest

from hotshoe.clients.scenarios.asker import Answer, Ask, tokens_per_second
from hotshoe.clients.scenarios.gaps import Streams
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.tenants import _service, jain
from hotshoe.protos.v1.generation_pb2 import StreamGenerateResponse, Token


def answer(*times: float, prompt_tokens: int = 10) -> Answer:
    """An answer that had a token at each of these times."""
    message = StreamGenerateResponse(tokens=[Token(token_id=1)]).SerializeToString()
    ask = Ask(b"", prompt_tokens)
    return Answer(ask, started=0.0, _arrivals=list(times), _messages=[message] * len(times), ended=max(times))


def test_gaps_are_those_that_end_within_a_span_of_their_kind() -> None:
    streams = Streams([answer(0.5, 1.5, 2.5, 4.5), answer(1.0, 3.0)])
    streams.spans = {"quiet": [(0.0, 2.0), (4.0, 5.0)], "busy": [(2.0, 4.0)]}
    assert sorted(streams.gaps("quiet")) == [1.0, 2.0]
    assert sorted(streams.gaps("busy")) == [1.0, 2.0]
    assert streams.figures("busy")["busy_tokens_per_second"] == 1.0
    assert streams.gaps("never") == []


def test_service_counts_prompts_with_their_first_token_and_twice_each_token_in_the_window() -> None:
    answers = [answer(0.5, 1.5, 2.5), answer(1.2, 1.4, prompt_tokens=7)]
    assert _service(answers, 1.0, 2.0) == 2 * 3 + 7


def test_jains_index_is_one_for_equals_and_the_reciprocal_of_all_for_one() -> None:
    assert jain({"a": 3.0, "b": 3.0}) == 1.0
    assert jain({"a": 3.0, "b": 0.0, "c": 0.0}) == pytest.approx(1 / 3)


def test_a_rate_is_of_all_tokens_from_the_first_request_to_the_last_answer() -> None:
    assert tokens_per_second([answer(1.0, 2.0), answer(4.0)]) == 0.75


def test_a_bar_is_met_on_its_side() -> None:
    sides = [Bar("x", 1.0, sense, limit).met for sense in Sense for limit in (0.9, 1.0, 1.1)]
    assert sides == [True, True, False, False, True, True]
    data = ScenarioReport("x", {}, bars=[Bar("y", 1.0, Sense.AT_MOST, 2.0, "ms")]).as_data()
    assert data["schema"] == "hotshoe.scenario/1" and data["bars"][0]["met"] is True
