"""hotshoe extract, from a fine-tune's files to an adapter that a running server answers with."""

import json
from pathlib import Path

import pytest
import torch
from model_directories import write_tiny_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from hotshoe.clients import Client
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.server.model.loader import open_base

PROMPT = [5, 9, 77, 30, 2, 111, 64]
UPDATED = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp() / "bases"  # where `start_server` has it


@pytest.fixture(scope="module")
def fine_tune(tiny_base: Path, bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the weights as they are served, by an update of rank 4."""
    directory = tmp_path_factory.mktemp("tuned")
    write_tiny_model(directory)
    tensors = {name: tensor.bfloat16().float() for name, tensor in load_file(directory / "model.safetensors").items()}
    base = open_base(str(tiny_base), cache=bases)
    for linear, shape in base.weights.shape.linears.items():
        tensors[f"{shape.module}.weight"] = base.weights.weight(linear).clone()
    generator = torch.Generator().manual_seed(6)
    b, a = torch.randn(128, 4, generator=generator), torch.randn(4, 64, generator=generator)
    tensors[UPDATED] += 0.05 * b @ a
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def hotshoe(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(command_line(), arguments)
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


def test_the_server_s_logits_are_the_fine_tune_s(start_server, tiny_base: Path, bases: Path, fine_tune: Path) -> None:
    from transformers import AutoModelForCausalLM

    server = start_server()
    of_base = ("--base", str(tiny_base), "--base-cache", str(bases))
    where = ("--rank-energy", "0.999", "--as", "extracted:v1", "--server", server.ready["grpc"])
    report = json.loads(hotshoe("extract", "--from", str(fine_tune), *of_base, *where, "--json"))
    assert [row["linear"] for row in report["linears"] if row["rank"]] == ["layers.1.up_proj"]
    with Client(server.ready["grpc"]) as client:
        adapter = client.get_adapter("extracted:v1")
        answers = {
            name: [token.logprob for token in answer.prompt_tokens[1:]]
            for name in ("extracted:v1", "")
            for answer in [client.generate(PROMPT, adapters=[name] * bool(name), max_new_tokens=1, prompt_logprobs=0)]
        }
    assert adapter.digest == report["adapter"]["digest"] and adapter.rank == 4
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(fine_tune)(input_ids=torch.tensor([PROMPT])).logits[0]
    full = logits.log_softmax(-1)[torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])].tolist()
    assert answers["extracted:v1"] == pytest.approx(full, abs=1e-4)
    assert answers[""] != pytest.approx(full, abs=1e-2)


def test_a_refusal_says_why_and_leaves_nothing(tiny_base: Path, bases: Path, tmp_path: Path, capfd) -> None:
    write_tiny_model(tmp_path / "other", seed=1)
    arguments = ("--from", str(tmp_path / "other"), "--to", str(tmp_path / "out"), "--rank", "4")
    hotshoe("extract", *arguments, "--base", str(tiny_base), "--base-cache", str(bases), code=5)
    assert "model.embed_tokens.weight" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_told_before_anything_is_read() -> None:
    assert "--to says where" in hotshoe("extract", "--from", "x", "--rank", "4", code=2)
    assert "not both" in hotshoe("extract", "--from", "x", "--to", "y", code=2)
