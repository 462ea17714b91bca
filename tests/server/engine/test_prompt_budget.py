"""How many rows of prompts may join a step of decodes: learned from steps, within bounds."""

import pytest

from hotshoe.server.engine.prompt_budget import FIRST_ROWS, MIN_ROWS, PromptBudget


def run(budget: PromptBudget, *, decodes: int, decode_ms: float, row_ms: float, fixed_ms: float = 0.0) -> list[float]:
    """Steps of a machine with those costs, prompts in all but the first 20; gives the stretch of the later ones."""
    stretches = []
    for step in range(120):
        rows = 0 if step < 20 else budget.rows(decodes)
        seconds = (decode_ms + row_ms * rows + (fixed_ms if rows else 0.0)) / 1000
        budget.note_step(num_decodes=decodes, num_prompt_rows=rows, seconds=seconds)
        stretches.append(seconds * 1000 / decode_ms)
    return stretches[60:]


@pytest.mark.parametrize("row_ms", (0.2, 0.9, 2.5))
@pytest.mark.parametrize("fixed_ms", (0.0, 12.0))
def test_a_step_with_prompts_is_stretched_as_far_as_allowed_and_no_further(row_ms: float, fixed_ms: float) -> None:
    budget = PromptBudget(max_rows=512, max_stretch=2.5)
    stretches = run(budget, decodes=8, decode_ms=30.0, row_ms=row_ms, fixed_ms=fixed_ms)
    assert max(stretches) <= 2.6
    assert min(stretches) >= 2.5 - 3 * row_ms / 30


def test_prompts_go_on_however_slow_their_rows_are() -> None:
    budget = PromptBudget(max_rows=512, max_stretch=2.0)
    run(budget, decodes=8, decode_ms=10.0, row_ms=100.0)
    assert budget.rows(8) == MIN_ROWS


def test_the_most_that_was_configured_is_never_exceeded() -> None:
    budget = PromptBudget(max_rows=64, max_stretch=4.0)
    run(budget, decodes=8, decode_ms=50.0, row_ms=0.001)
    assert budget.rows(8) == 64
    assert PromptBudget(max_rows=4, max_stretch=2.0).rows(8) == 4


def test_a_few_rows_are_tried_while_nothing_is_known() -> None:
    assert PromptBudget(max_rows=512, max_stretch=2.0).rows(8) == FIRST_ROWS


def test_one_interrupted_step_does_not_let_the_next_ones_grow_long() -> None:
    budget = PromptBudget(max_rows=512, max_stretch=2.5)
    run(budget, decodes=8, decode_ms=30.0, row_ms=1.0)
    before = budget.rows(8)
    budget.note_step(num_decodes=8, num_prompt_rows=0, seconds=0.060)  # twice as long as it takes
    assert budget.rows(8) <= 1.3 * before


def test_other_sizes_of_the_batch_take_the_nearest_that_was_seen() -> None:
    budget = PromptBudget(max_rows=512, max_stretch=2.0)
    budget.note_step(num_decodes=1, num_prompt_rows=0, seconds=0.010)
    budget.note_step(num_decodes=16, num_prompt_rows=0, seconds=0.040)
    budget.note_step(num_decodes=16, num_prompt_rows=10, seconds=0.050)  # 1 ms a row
    assert budget.rows(1) == 10 and budget.rows(12) == 40 and budget.rows(30) == 40


def test_the_first_to_decode_wait_for_the_many_that_came_with_them() -> None:
    budget = PromptBudget(max_rows=512, max_stretch=2.5)
    budget.note_step(num_decodes=1, num_prompt_rows=0, seconds=0.003)
    budget.note_step(num_decodes=16, num_prompt_rows=0, seconds=0.012)
    budget.note_step(num_decodes=16, num_prompt_rows=10, seconds=0.015)  # 0.3 ms a row
    assert budget.rows(1) == 15  # 2.5 · 3 − 3 ms
    assert budget.rows(1, num_joining=15) == 90  # 2.5 · 12 − 3 ms
    assert budget.rows(16) == 60
