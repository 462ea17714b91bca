"""A share of the fuzzer's work; `tests/factories/fuzz_adapters.py` does all of it."""

from pathlib import Path

import pytest
from fuzz_adapters import fuzz_headers, fuzz_publishes

from hotshoe.registry.validation import TensorFile


def test_no_mutant_of_a_header_crashes_or_is_read_otherwise_than_by_the_library() -> None:
    tally = fuzz_headers(30_000, seed=1)
    assert tally.surprises == []
    assert tally.accepted > 1_000 and sum(tally.refusals.values()) > 10_000, "mutants of both sorts are needed"


def test_no_mutated_publish_crashes_or_comes_back_otherwise(tmp_path: Path) -> None:
    tally = fuzz_publishes(800, seed=1, root=tmp_path / "registry")
    assert tally.surprises == []
    assert tally.accepted > 50 and len(tally.refusals) >= 3


def test_the_fuzzer_finds_a_check_that_was_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorFile, "_check_coverage", lambda self, entries, *, data_start: None)
    assert fuzz_headers(3_000, seed=1).surprises
