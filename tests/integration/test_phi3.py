"""A Phi-3 base through a server: adapters of its fused linears, alone, mixed, merged, and made of a fine-tune."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from model_directories import write_tiny_model
from peft import IA3Config, LoraConfig, OFTConfig, PeftModel
from peft_adapters import save_peft, write_lora, write_prefix
from safetensors.torch import load_file, save_file
from served_bases import answer, greedy, served_model
from server_process import ServerProcess, command, launch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from hotshoe.clients import Client, FailedPrecondition
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.server.model.loader import open_base

NEAR = 24  # positions of the first context, beyond which all turn otherwise
FIELDS = {
    "rope_parameters": {
        "rope_type": "longrope",
        "short_factor": [1.0, 1.2, 1.4, 1.5, 1.7, 2.0],
        "long_factor": [1.0, 2.5, 4.0, 6.0, 9.0, 14.0],
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.75,
    },
    "original_max_position_embeddings": NEAR,
    "sliding_window": 40,
}
EVERY = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
PROMPT = [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61]
FAR_PROMPT = [*PROMPT, *PROMPT]
CONFIGS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=EVERY, rank_pattern={"qkv_proj": 7}, use_rslora=True),
    "dora": LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=EVERY, use_dora=True),
    "ia3": IA3Config(task_type="CAUSAL_LM", target_modules=EVERY, feedforward_modules=["down_proj", "gate_up_proj"]),
    "oft": OFTConfig(task_type="CAUSAL_LM", target_modules=EVERY, oft_block_size=8, r=0),
}


@pytest.fixture(scope="module")
def phi3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "phi3"
    write_tiny_model(directory, "phi3", **FIELDS)
    return directory


@pytest.fixture(scope="module")
def adapters(phi3: Path, bases: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        save_peft(root / name, served_model(phi3, bases), config)
    write_prefix(root / "prefix", served_model(phi3, bases), tokens=5)
    return {name: root / name for name in (*CONFIGS, "prefix")}


@pytest.fixture(scope="module")
def server(
    phi3: Path, bases: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    server = launch(directory, command(phi3, directory / "registry", "--base-cache", str(bases)))
    for name, path in adapters.items():
        hotshoe("publish", str(path), f"phi/{name}:v1", "--server", server.ready["grpc"])
    yield server
    server.end()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.ready["grpc"]) as client:
        yield client


def hotshoe(*arguments: str) -> str:
    result = CliRunner().invoke(command_line(), arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.mark.parametrize("name", [*CONFIGS, "prefix"])
def test_what_was_published_answers_as_peft_does_near_and_far(
    name: str, client: Client, adapters: dict[str, Path], phi3: Path, bases: Path
) -> None:
    wrapped = PeftModel.from_pretrained(served_model(phi3, bases), adapters[name]).eval()
    for prompt in (PROMPT, FAR_PROMPT):  # the second begins near and ends far
        tokens, expected = greedy(wrapped, prompt)
        ours, found = answer(client, prompt, [f"phi/{name}:v1"])
        assert ours == tokens
        assert found == pytest.approx(expected, abs=1e-4)
        assert found != pytest.approx(answer(client, prompt, [])[1], abs=1e-2)  # or the adapter is not to be seen
    assert answer(client, FAR_PROMPT, [])[0] == greedy(served_model(phi3, bases), FAR_PROMPT)[0]


def test_mixed_in_a_batch_each_gets_what_it_gets_alone(client: Client) -> None:
    stacks = [[f"phi/{name}:v1"] for name in (*CONFIGS, "prefix")] + [[("phi/lora:v1", 0.5), "phi/ia3:v1"], []]
    asked = [(prompt, stack) for stack in stacks for prompt in (PROMPT, FAR_PROMPT)]
    with ThreadPoolExecutor(len(asked)) as threads:
        together = [*threads.map(lambda one: answer(client, *one)[0], asked)]
    assert together == [answer(client, *one)[0] for one in asked]
    assert len({tuple(tokens) for tokens in together}) > len(stacks)


def test_merged_adapters_answer_as_their_stack(client: Client, phi3: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(phi3)
    client.publish_directory(write_lora(tmp_path / "other", model, rank=3, targets=EVERY[1:], seed=9), "phi/other")
    sources = [("phi/lora:v1", 0.7), ("phi/other", -0.4)]
    merged = client.merge_adapters(sources, "phi/both", tags=["v1"])
    assert set(merged.adapter.target_modules) == set(EVERY) and merged.adapter.rank == 7
    assert answer(client, PROMPT, ["phi/both:v1"])[1] == pytest.approx(answer(client, PROMPT, sources)[1], abs=1e-4)


def test_the_doctor_speaks_of_the_fused_linears(client: Client) -> None:
    found = client.diagnose("phi/lora:v1", exact=True).diagnosis
    assert {one.target for one in found.linears} == set(EVERY) and len(found.linears) == 8
    assert all(one.relative_norm > 0 for one in found.linears)


def test_an_adapter_of_another_family_is_refused_with_the_names(client: Client, tmp_path: Path) -> None:
    from model_directories import tiny_model

    with pytest.raises(FailedPrecondition, match="expected of qkv_proj, o_proj, gate_up_proj, down_proj"):
        client.publish_directory(write_lora(tmp_path / "llama", tiny_model()), "phi/llama")


def test_a_fine_tune_of_a_fused_linear_is_extracted(
    client: Client, server: ServerProcess, phi3: Path, bases: Path, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "tuned", "phi3", **FIELDS)
    path = tmp_path / "tuned" / "model.safetensors"
    tensors = {name: tensor.bfloat16().float() for name, tensor in load_file(path).items()}
    base = open_base(str(phi3), cache=bases)
    for linear, shape in base.weights.shape.linears.items():
        tensors[f"{shape.module}.weight"] = base.weights.weight(linear).clone()
    b, a = torch.randn(128, 4), torch.randn(4, 64)
    tensors["model.layers.1.self_attn.qkv_proj.weight"] += 0.05 * b @ a
    save_file(tensors, path, metadata={"format": "pt"})
    of_base = ("--base", str(phi3), "--base-cache", str(bases))
    where = ("--rank-energy", "0.999", "--as", "phi/extracted:v1", "--server", server.ready["grpc"])
    report = json.loads(hotshoe("extract", "--from", str(tmp_path / "tuned"), *of_base, *where, "--json"))
    assert [row["linear"] for row in report["linears"] if row["rank"]] == ["layers.1.qkv_proj"]
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").eval()
    expected = greedy(tuned, FAR_PROMPT)
    ours = answer(client, FAR_PROMPT, ["phi/extracted:v1"])
    assert ours[0] == expected[0] and ours[1] == pytest.approx(expected[1], abs=1e-3)
