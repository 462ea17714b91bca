"""What was not had is known for a moment, and of so many only."""

from types import SimpleNamespace

import pytest

from hotshoe.server.services import recent_failures
from hotshoe.server.services.recent_failures import FORGET_SECONDS, MAX_FAILURES, RecentFailures


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(recent_failures, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_failure_is_known_until_it_is_forgotten(clock: list[float]) -> None:
    failures: RecentFailures[str] = RecentFailures()
    failures.note("a", "no remote has it")
    clock[0] += FORGET_SECONDS - 0.01
    assert failures.find("a") == "no remote has it" and failures.find("b") is None
    clock[0] += 0.01
    assert failures.find("a") is None


def test_the_one_that_was_noted_first_makes_room(clock: list[float]) -> None:
    failures: RecentFailures[int] = RecentFailures()
    for number in range(MAX_FAILURES):
        failures.note(str(number), number)
    failures.note("0", -1)  # anew, and so the newest
    failures.note("one more", 0)
    assert failures.find("0") == -1 and failures.find("1") is None and failures.find("2") == 2
