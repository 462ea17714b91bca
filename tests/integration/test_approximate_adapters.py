"""Adapters whose update is of full rank: refused, or published as their nearest of a rank, which is told everywhere."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from peft_adapters import adapter_files, save_peft
from peft_kinds import DENSE_CONFIGS
from server_process import ServerProcess
from typer.testing import CliRunner

from hotshoe.clients import Client, InvalidArgument
from hotshoe.clients.cli.__main__ import command_line

PROMPT = [5, 9, 77, 30, 2]


@pytest.fixture(scope="module")
def hira(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("hira")
    save_peft(directory, AutoModelForCausalLM.from_pretrained(tiny_base), DENSE_CONFIGS["hira"]())
    return directory


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.ready["grpc"]) as client:
        yield client


def logprobs(client: Client, adapters: object) -> list[float]:
    """Of the prompt's tokens."""
    answer = client.generate(PROMPT, adapters=adapters, max_new_tokens=1, prompt_logprobs=0)  # type: ignore[arg-type]
    return [token.logprob for token in answer.prompt_tokens[1:]]


def test_unasked_it_is_refused_with_the_option_s_name(client: Client, hira: Path) -> None:
    with pytest.raises(InvalidArgument, match="--approximate-rank R"):
        client.publish_directory(hira, "dense/unasked")


def test_what_is_kept_is_in_the_answer_the_manifest_and_the_card(client: Client, hira: Path, tmp_path: Path) -> None:
    published = client.publish_directory(hira, "dense/six", approximate_rank=6)
    again = client.publish_directory(hira, "dense/six", approximate_rank=6)
    assert published.created and not again.created and again.adapter.digest == published.adapter.digest
    kept = client.get_adapter("dense/six").approximation
    assert kept.rank == published.adapter.rank == 6
    assert 0.1 < kept.least_energy < kept.energy < 0.999 and kept.least_linear.startswith("layers.")
    finer = client.publish_directory(hira, "dense/six", approximate_rank=12).adapter
    assert finer.digest != published.adapter.digest and finer.approximation.energy > kept.energy
    client.pull(f"dense/six@{published.adapter.digest}", tmp_path)
    written = json.loads((tmp_path / "adapter.card.json").read_text())["approximation"]
    assert written == json.loads(published.adapter.annotations["dev.hotshoe.adapter.approximation"])
    assert written == {
        "rank": 6,
        "energy": round(kept.energy, 4),
        "least_energy": round(kept.least_energy, 4),
        "least_linear": kept.least_linear,
    }


def test_it_answers_and_the_more_rank_the_nearer_to_the_whole(client: Client, hira: Path) -> None:
    answers = {}
    for rank in (2, 24, 96):
        client.publish_directory(hira, f"dense/of-{rank}", approximate_rank=rank)
        answers[rank] = logprobs(client, f"dense/of-{rank}")
    base = logprobs(client, [])
    far, near, bare = (
        sum(abs(one - whole) for one, whole in zip(other, answers[96], strict=True))
        for other in (answers[2], answers[24], base)
    )
    assert near < far and near < bare / 2


def test_the_command_line_publishes_shows_and_examines_it(server: ServerProcess, hira: Path) -> None:
    def run(*arguments: str) -> str:
        result = CliRunner().invoke(command_line(), [*arguments, "--server", server.ready["grpc"]])
        assert result.exit_code == 0, result.output
        return result.output

    assert "cut to rank 5, " in run("publish", str(hira), "dense/told", "--approximate-rank", "5")
    assert "approximation" in run("show", "dense/told") and "cut to rank 5, " in run("show", "dense/told")
    assert json.loads(run("show", "dense/told", "--json"))["approximation"]["rank"] == 5
    told = run("doctor", "dense/told", "--all"), run("doctor", str(hira), "--all", "--approximate-rank", "5")
    assert all("NORM" in table for table in told)


def test_it_merges_like_any_other_low_rank_adapter(client: Client, hira: Path) -> None:
    client.publish_directory(hira, "dense/parent", approximate_rank=4)
    merged = client.merge_adapters([("dense/parent", 0.5), ("dense/parent", 0.5)], "dense/merged").adapter
    assert merged.kind == "LORA" and not merged.HasField("approximation")
    assert logprobs(client, "dense/merged") == pytest.approx(logprobs(client, "dense/parent"), abs=1e-4)


def test_an_exact_kind_is_not_approximated(client: Client, hira: Path, tmp_path: Path) -> None:
    config = json.loads((adapter_files(hira)["adapter_config.json"]).read_text())
    for name, path in adapter_files(hira).items():
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "LORA"}))
    with pytest.raises(InvalidArgument, match="LORA is served exactly"):
        client.publish_directory(tmp_path, "dense/exact", approximate_rank=4)


def test_what_was_cut_for_the_publisher_is_not_cut_again(start_server, tiny_base: Path, hira: Path) -> None:
    server = start_server("--base-cache", str(hira.parent / "own-bases"))
    lowered = hira.parent / "own-bases" / "lowered"
    with Client(server.ready["grpc"]) as client:
        client.publish_directory(hira, "dense/kept", approximate_rank=7)
        [kept] = lowered.iterdir()
        written = kept.stat().st_ino
        first = logprobs(client, "dense/kept")
        assert [path.stat().st_ino for path in lowered.iterdir()] == [written]  # read, and not written anew
        client.publish_directory(hira, "dense/only-checked", approximate_rank=9, validate_only=True)
        assert len(list(lowered.iterdir())) == 1
        client.publish_directory(hira, "dense/other", approximate_rank=3)
        assert len(list(lowered.iterdir())) == 2 and logprobs(client, "dense/kept") == first


def test_exported_and_imported_it_is_the_same_adapter(
    server: ServerProcess, client: Client, hira: Path, tmp_path: Path
) -> None:
    from hotshoe.clients.exchange.imports import import_adapter

    def export(*arguments: str) -> None:
        result = CliRunner().invoke(command_line(), ["export", *arguments, "--server", server.ready["grpc"]])
        assert result.exit_code == 0, result.output

    published = client.publish_directory(hira, "dense/exported", approximate_rank=5).adapter
    export("dense/exported", str(tmp_path / "layout"), "--format", "oci")
    imported = import_adapter(client, tmp_path / "layout", "dense/imported")
    assert imported.adapter.digest == published.digest and not imported.is_another
    assert imported.adapter.approximation == published.approximation
