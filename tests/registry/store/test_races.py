"""A share of what `tests/factories/store_races.py` has at once on one store, and that it fails without the locks."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import store_races

SECONDS = float(os.environ.get("HOTSHOE_RACE_SECONDS", "4"))
LONGER = (1, 4, 16)  # times as long, where the machine was too busy for anything to happen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + sum(LONGER) * SECONDS)]

WHAT_HAPPENS = ("published", "read", "collections", "collected", "rounds_of_one_digest", "rounds_of_one_tag")


def _race(root: Path, seconds: float, *arguments: str) -> dict[str, Any]:
    program = str(store_races.__file__)
    paths = [str(Path(program).parent), os.environ.get("PYTHONPATH", "")]
    ran = subprocess.run(
        [sys.executable, "-P", program, "--root", str(root), "--share", "--seconds", str(seconds), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
    )
    assert ran.stdout, ran.stderr
    told: dict[str, Any] = json.loads(ran.stdout)
    print(told)
    return told


def test_nothing_referenced_is_collected_and_every_round_has_one_winner(root: Path) -> None:
    for times in LONGER:
        told = _race(root / str(times), times * SECONDS)
        assert told["wrong"] == []
        if all(told.get(what) for what in WHAT_HAPPENS):
            return
    raise AssertionError(told)


def test_without_the_turnstile_the_same_race_loses_blobs(root: Path) -> None:
    for times in LONGER:
        told = _race(root / str(times), times * SECONDS, "--unlocked")
        if any("is lost" in wrong or "missing" in wrong for wrong in told["wrong"]):
            return
    raise AssertionError(told)
