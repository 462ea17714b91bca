"""Adapters loaded and unloaded from many threads: a share of what `tests/factories/attach_storm.py` does."""

from collections.abc import Callable
from pathlib import Path

from attach_storm import ADAPTERS, ARGUMENTS, storm
from canaries import publish_canaries
from model_directories import tiny_model
from server_process import ServerProcess

THREADS, ROUNDS = 16, 8


def test_loads_and_unloads_from_many_threads_fail_nobody(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    server = start_server(*ARGUMENTS)
    canaries = publish_canaries(server, tiny_model(), tmp_path / "canaries", ADAPTERS)
    result = storm(server, canaries, threads=THREADS, rounds=ROUNDS)
    assert result.wrong == []
    assert len(result.unloads) == THREADS * ROUNDS and "found" in result.unloads and result.answers
    assert "Traceback" not in server.log
