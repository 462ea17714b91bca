"""Replicas that are started anew under clients that name them all: a share of `tests/factories/rolling.py`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from rolling import ANSWERS, Replicas, roll


@pytest.fixture
def replicas(tiny_base: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    two = Replicas(tmp_path, tiny_base, tmp_path_factory.getbasetemp() / "bases")
    yield two
    two.end()


def test_no_request_fails_while_a_replica_drains_and_starts_anew(replicas: Replicas, tmp_path: Path) -> None:
    callers = roll(replicas, tmp_path / "adapters", restarts=1)
    assert callers.wrong == []
    assert callers.answers["restart 0"] >= ANSWERS, "the other one answered meanwhile"
