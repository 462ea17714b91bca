"""Where adapters come from and how they differ, by a running server and on the command line."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from peft_adapters import write_lora
from server_process import ServerProcess
from typer.testing import CliRunner

from hotshoe.clients import Client, NotFound
from hotshoe.clients.cli.__main__ import command_line


@pytest.fixture
def client(server: ServerProcess, tiny_base: Path, tmp_path: Path) -> Iterator[Client]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    with Client(server.ready["grpc"]) as client:
        for name, rank, seed in (("one", 4, 1), ("two", 6, 2)):
            client.publish_directory(write_lora(tmp_path / name, model, rank=rank, seed=seed), f"family/{name}")
        yield client


def hotshoe(server: ServerProcess, *arguments: str) -> str:
    result = CliRunner().invoke(command_line(), [*arguments, "--server", server.ready["grpc"]])
    assert result.exit_code == 0, result.output
    return result.output


def test_lineage_follows_parents_to_trained_adapters_and_children_one_step(
    client: Client, server: ServerProcess
) -> None:
    earlier = {child.digest for child in client.lineage("family/one").children}  # of other tests
    both = client.merge_adapters([("family/one", 0.5), "family/two"], "family/both", tags=["v1", "latest"]).adapter
    top = client.merge_adapters(["family/both", "family/one"], "family/top", parameters={"rank": 3}).adapter
    family = client.lineage("family/top")
    assert [adapter.name for adapter in family.ancestors] == ["family/both", "family/one", "family/two"]
    assert not family.missing_digests and not family.children
    assert [child.digest for child in client.lineage("family/both:v1").children] == [top.digest]
    one = client.lineage("family/one")
    assert {child.digest for child in one.children} == {*earlier, both.digest, top.digest} and not one.ancestors
    lines = hotshoe(server, "lineage", "family/top").splitlines()
    assert lines[0].startswith("family/top@sha256:")
    assert lines[1].startswith("├─ 1 × family/both@") and lines[1].endswith("(latest, v1)  by linear, rank=3")
    assert lines[2].startswith("│  ├─ 0.5 × family/one@") and lines[3].startswith("│  └─ 1 × family/two@")
    assert lines[4].startswith("└─ 1 × family/one@") and len(lines) == 5
    assert "→ family/top@" in hotshoe(server, "lineage", "family/both")
    with pytest.raises(NotFound):
        client.lineage("family/none")


def test_a_comparison_tells_fields_and_angles(client: Client, server: ServerProcess) -> None:
    found = client.compare_adapters("family/one", "family/two")
    assert {field.field: (field.first, field.second) for field in found.fields}["r"] == ("4", "6")
    assert len(found.linears) == 4 and all(abs(one.cosine) < 0.5 and one.distance > 0.5 for one in found.linears)
    same = client.compare_adapters("family/one", "family/one")
    assert not same.fields and same.cosine == pytest.approx(1.0) and same.distance == pytest.approx(0.0, abs=1e-6)
    half = client.merge_adapters([("family/one", 0.5), ("family/two", 0.0)], "family/half").adapter
    halved = client.compare_adapters("family/one", f"family/half@{half.digest}")
    assert halved.cosine == pytest.approx(1.0) and halved.distance == pytest.approx(0.5)
    shown = hotshoe(server, "diff", "family/one", "family/two")
    assert "COSINE" in shown and "\nr " in shown and "0.q_proj" in shown and "\nall " in shown
