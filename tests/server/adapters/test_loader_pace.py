"""Loaders work at a share of one core while requests decode, and as fast as they can when none do."""

import threading
import time

import pytest

from hotshoe.server.adapters import loader_pace
from hotshoe.server.adapters.loader_pace import LoaderPace


class Clock:
    """Time that passes only by work and by sleep."""

    def __init__(self) -> None:
        self.now = 0.0
        self.worked = 0.0

    def monotonic(self) -> float:
        return self.now

    def thread_time(self) -> float:
        return self.worked

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def work(self, seconds: float) -> None:
        self.now += seconds
        self.worked += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loader_pace, "time", clock)
    return clock


def load(pace: LoaderPace, clock: Clock, *, pieces: int = 100, seconds: float = 0.0007) -> float:
    """Runs one load in pieces; gives how long it took."""
    started = clock.now
    pace.begin()
    for _ in range(pieces):
        clock.work(seconds)
        pace.pause()
    return clock.now - started


@pytest.mark.parametrize("share", (0.05, 0.1, 0.5))
def test_a_load_takes_its_share_of_a_core_while_requests_decode(clock: Clock, share: float) -> None:
    pace = LoaderPace(share)
    pace.set_decoding(True)
    assert load(pace, clock) == pytest.approx(100 * 0.0007 / share)


@pytest.mark.parametrize("share", (0.05, 1.0))
def test_nobody_sleeps_when_nothing_decodes_or_the_share_is_whole(clock: Clock, share: float) -> None:
    pace = LoaderPace(share)
    pace.set_decoding(share == 1.0)
    assert load(pace, clock) == pytest.approx(100 * 0.0007)


def test_small_pieces_are_saved_up_and_paid_for_together(clock: Clock) -> None:
    pace = LoaderPace(0.1)
    pace.set_decoding(True)
    assert load(pace, clock, pieces=1000, seconds=0.0001) == pytest.approx(1000 * 0.0001 / 0.1, rel=0.01)


def test_loads_that_wait_add_to_the_share(clock: Clock) -> None:
    waiting = 3
    pace = LoaderPace(0.1, backlog=lambda: waiting)
    pace.set_decoding(True)
    assert load(pace, clock) == pytest.approx(100 * 0.0007 / 0.4)
    waiting = 20
    assert load(pace, clock) == pytest.approx(100 * 0.0007), "never more than there is"


def test_what_a_thread_did_before_its_load_is_not_counted(clock: Clock) -> None:
    pace = LoaderPace(0.1)
    pace.set_decoding(True)
    clock.work(10.0)
    assert load(pace, clock) == pytest.approx(100 * 0.0007 / 0.1)


def test_a_loader_that_sleeps_goes_on_when_the_last_request_has_ended() -> None:
    pace, done = LoaderPace(0.000_001), threading.Event()
    pace.set_decoding(True)

    def load() -> None:
        pace.begin()
        end = time.thread_time() + 2 * loader_pace.SLICE_SECONDS
        while time.thread_time() < end:
            pass
        pace.pause()  # owes some 1000 seconds
        done.set()

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    assert not done.wait(0.2)
    pace.set_decoding(False)
    assert done.wait(20)
    thread.join()
