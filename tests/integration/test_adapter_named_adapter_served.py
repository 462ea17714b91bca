"""The adapter named is the adapter served: a share of what `tests/factories/canaries.py` and `attach_storm.py` do."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from attach_storm import storm
from canaries import SLOTS, Canaries, publish_canaries, sing
from model_directories import tiny_model
from server_process import ServerProcess, command, launch

NUM_ADAPTERS = 24
NUM_REQUESTS = 600
THREADS, ROUNDS = 16, 8

Crowded = tuple[ServerProcess, Canaries]


@pytest.fixture(scope="module")
def crowded(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowded]:
    """A server with four times as many adapters as slots."""
    directory = tmp_path_factory.mktemp("crowded")
    cache = tmp_path_factory.getbasetemp() / "bases"
    server = launch(directory, command(tiny_base, directory / "registry", "--base-cache", str(cache), *SLOTS))
    yield server, publish_canaries(server, tiny_model(), directory / "canaries", NUM_ADAPTERS)
    server.end()


def test_no_answer_is_another_adapters_under_churn_and_moving_tags(crowded: Crowded) -> None:
    server, canaries = crowded
    asyncio.run(sing(server.ready["grpc"], canaries, NUM_REQUESTS))
    assert canaries.wrong == []
    assert canaries.answers.total() == NUM_REQUESTS and len(canaries.answers) == NUM_ADAPTERS + 1
    assert server.metric("hotshoe_adapter_evictions_total") > NUM_ADAPTERS and canaries.cached_tokens > 0


def test_loads_and_unloads_from_many_threads_fail_nobody(crowded: Crowded) -> None:
    result = storm(*crowded, threads=THREADS, rounds=ROUNDS)
    assert result.wrong == []
    assert len(result.unloads) == THREADS * ROUNDS and "found" in result.unloads and result.answers
    assert "Traceback" not in crowded[0].log
