"""A share of what `tests/factories/power_loss.py` tries."""

import crash_matrix
import power_loss
import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(crash_matrix.can_watch()), reason=f"strace cannot be used: {crash_matrix.can_watch()}"),
]


def test_what_was_acknowledged_outlives_the_power_and_nothing_is_torn() -> None:
    outcome = power_loss.run(tries=2, share=0.4, seed=1)
    assert outcome.wrong == [] and outcome.disks > 100


def test_a_store_that_never_synced_would_be_found_out() -> None:
    assert power_loss.run(tries=1, share=0.3, seed=1, ignore_syncs=True).wrong
