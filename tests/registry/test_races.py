"""Everybody at once on one store. HOTSHOE_RACE_SECONDS=600 makes it as long as you like; 4 is enough to fail without
locks, as the second test shows.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import store_races

SECONDS = float(os.environ.get("HOTSHOE_RACE_SECONDS", "4"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300 + 2 * SECONDS)]


def _race(root: Path, *arguments: str) -> dict[str, Any]:
    program = str(store_races.__file__)
    paths = [str(Path(program).parent), os.environ.get("PYTHONPATH", "")]
    ran = subprocess.run(
        [sys.executable, "-P", program, str(root), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(ran.stdout)
    print(told)
    return told


def test_nothing_referenced_is_collected_and_every_round_has_one_winner(root: Path) -> None:
    told = _race(root, str(SECONDS))
    assert told["wrong"] == []
    for what in ("published", "read", "collections", "collected", "races", "rounds"):
        assert told.get(what), (what, told)


def test_without_the_turnstile_the_same_race_loses_blobs(root: Path) -> None:
    told = _race(root, str(SECONDS), "--unlocked")
    assert any("is lost" in wrong or "missing" in wrong for wrong in told["wrong"]), told
