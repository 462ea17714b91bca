"""A share of the crash matrix. All of it: python tests/factories/crash_matrix.py."""

import os

import crash_matrix
import pytest

SHARE = float(os.environ.get("HOTSHOE_CRASH_SHARE", "0.04"))


@pytest.mark.slow
@pytest.mark.timeout(600 + 3000 * SHARE)
def test_operations_stopped_at_any_system_call_lose_and_tear_nothing() -> None:
    if problem := crash_matrix.can_watch():
        pytest.skip(problem)
    points = acknowledged = 0
    for name, result in crash_matrix.run(["small"], share=SHARE):
        print(f"{name}: {result}")
        assert result.lost == [] and result.torn == []
        points += sum(result.points.values())
        acknowledged += result.acknowledged
    assert points >= 8 and acknowledged < points
