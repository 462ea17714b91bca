"""Scenarios against real servers of a tiny base: that they measure what they say. How fast is no test's matter."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

import planted_bugs
import pytest
from model_directories import write_tiny_model

from hotshoe.clients.cli import scenario as verb
from hotshoe.clients.scenarios import first_token, table, transfer
from hotshoe.clients.scenarios.random_adapters import DecoderShape
from hotshoe.clients.scenarios.report import ScenarioReport
from hotshoe.clients.scenarios.stage import StageSettings
from hotshoe.clients.scenarios.table import SCENARIOS, run_scenario

SHAPE = DecoderShape(layers=2, hidden=64, intermediate=128, kv=32)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for streams that outlast what is looked at beside them."""
    directory = tmp_path_factory.mktemp("base")
    write_tiny_model(directory, max_position_embeddings=4096)
    return directory


def run(name: str, base: Path, directory: Path, *, scale: float) -> ScenarioReport:
    arguments = ("--base", str(base), "--backend", "reference", "--device", "cpu", "--threads", "1")
    settings = StageSettings(directory=directory, server_arguments=arguments, shape=SHAPE, scale=scale)
    return asyncio.run(run_scenario(name, settings))


def test_every_scenario_can_be_named_on_the_command_line() -> None:
    assert tuple(SCENARIOS) == verb.NAMES


def test_slots_serves_each_adapter_in_every_order(base: Path, tmp_path: Path) -> None:
    report = run("slots", base, tmp_path, scale=0.01)
    assert report.errors == {}
    served = [bar for bar in report.bars if bar.promise.startswith("adapters served")]
    assert [bar.measured for bar in served] == [16, 16] and all(bar.met for bar in served)
    assert report.figures["zipf_best_tokens_per_second"] > 0


def test_prefix_finds_what_is_shared_and_nothing_of_another_tenant(base: Path, tmp_path: Path) -> None:
    report = run("prefix", base, tmp_path, scale=0.1)
    assert report.errors == {}
    hits, *_, stranger = report.bars
    assert hits.measured == pytest.approx(1.0) and stranger.measured == 0


def test_many_adapters_compares_rounds_of_few_and_of_all(base: Path, tmp_path: Path) -> None:
    report = run("many-adapters", base, tmp_path, scale=0.02)
    assert report.errors == {} and report.conditions["adapters"] == 20
    [bar] = report.bars
    assert report.figures["lowest_ratio"] <= bar.measured <= report.figures["highest_ratio"]
    again = run("many-adapters", base, tmp_path, scale=0.02)
    assert again.errors == {}, "what was published before is found again"


def test_publishing_looks_at_streams_while_fresh_adapters_are_examined(base: Path, tmp_path: Path) -> None:
    report = run("publishing", base, tmp_path, scale=0.1)
    assert report.errors == {} and report.conditions["rounds"] == 1
    assert report.figures["publishing_tokens_per_second"] > 0 and report.figures["publish_seconds"] > 0
    for bar, name in zip(report.bars, ("p99", "tokens_per_second"), strict=True):
        assert bar.measured == pytest.approx(report.figures[f"publishing_{name}"] / report.figures[f"quiet_{name}"])


def test_transfer_measures_publishing_and_pulling_beside_the_least(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_FREED_BYTES", 0)
    report = run("transfer", base, tmp_path, scale=0.1)
    assert report.errors == {} and report.conditions["rounds"] == 3
    published, pulled = report.bars
    assert published.measured == report.figures["publish_s"] / report.figures["least_s"]
    assert pulled.measured == report.figures["pull_s"] / report.figures["least_s"]
    assert 0 < report.figures["publish_fastest_s"] <= report.figures["publish_s"]
    assert 0 <= report.figures["publish_server_mb"] < 100


def test_first_token_looks_at_each_place_of_an_adapter_on_a_base_of_random_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(first_token, "RANKS", (4,))
    monkeypatch.setitem(table.SCENARIOS, "first-token", replace(SCENARIOS["first-token"], shape=SHAPE))
    arguments = ("--backend", "reference", "--device", "cpu", "--threads", "1")
    settings = StageSettings(directory=tmp_path, server_arguments=arguments, scale=0.1)
    report = asyncio.run(run_scenario("first-token", settings))
    assert report.errors == {} and report.conditions["tries"] == 3
    assert report.conditions["base_model"] == "random-base"
    host, disk, cold = report.bars
    assert host.limit == 5
    for place, bar in (("disk", disk), ("cold", cold)):
        assert bar.measured == pytest.approx(1e3 * report.figures[f"r4_{place}_added"])
        assert bar.limit == pytest.approx(50 + 1e3 * report.figures[f"r4_{place}_read"])
        assert report.figures[f"r4_{place}_added_p99"] >= report.figures[f"r4_{place}_added"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_tells_a_server_that_grows_from_one_that_does_not(base: Path, tmp_path: Path) -> None:
    sound = run("memory", base, tmp_path / "sound", scale=0.01)
    with planted_bugs.leak(1_500_000):
        leaking = run("memory", base, tmp_path / "leaking", scale=0.01)
    assert sound.errors == {} and leaking.errors == {}
    assert sound.bars[0].met and not leaking.bars[0].met
    assert leaking.bars[0].measured > sound.bars[0].measured + 100
