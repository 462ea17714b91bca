"""What a hostile client sends to the gRPC port: a share of `tests/factories/floods.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from floods import cancels, connects, full_house, held_idle, let_in, pings, rapid_resets, under, unread_pings
from server_process import ServerProcess, command, launch, limited

FILES = 256
PLACES = FILES // 2


@pytest.fixture(scope="module")
def flooded(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that may have few files open."""
    directory = tmp_path_factory.mktemp("flooded")
    cache = tmp_path_factory.getbasetemp() / "bases"
    arguments = command(tiny_base, directory / "registry", "--base-cache", str(cache), "--log-json")
    server = launch(directory, limited(arguments, files=FILES))
    yield server
    server.end()


def test_streams_that_are_reset_at_once_leave_nothing_and_hold_nobody_up(flooded: ServerProcess) -> None:
    outcome = under(flooded, "resets", lambda address: rapid_resets(address, 4000))
    assert outcome.wrong == [] and outcome.answers


def test_calls_that_are_given_up_leave_nothing_and_hold_nobody_up(flooded: ServerProcess) -> None:
    outcome = under(flooded, "cancels", lambda address: cancels(address, 400))
    assert outcome.wrong == [] and outcome.answers
    assert outcome.calls > 0, "some have begun before they were given up"


def test_pings_in_any_number_are_answered_and_kept_for_nobody(flooded: ServerProcess) -> None:
    assert under(flooded, "pings", lambda address: pings(address, 50_000)).wrong == []
    assert under(flooded, "unread pings", unread_pings).wrong == []


def test_connections_that_say_nothing_hold_nobody_up_while_there_are_places(flooded: ServerProcess) -> None:
    assert under(flooded, "connects", lambda address: connects(address, 500)).wrong == []
    assert held_idle(flooded, PLACES // 2).wrong == []


def test_a_connection_too_many_is_closed_and_who_is_in_is_served(flooded: ServerProcess) -> None:
    with full_house(flooded, 3 * PLACES, places=PLACES) as outcome:
        pass
    assert outcome.wrong == []
    let_in(flooded)
