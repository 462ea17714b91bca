"""A Gemma 2 base through a server: adapters beside each other, chats without a system, and one made of a fine-tune."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from model_directories import write_tiny_model
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, PrefixTuningConfig, TrainableTokensConfig
from peft_adapters import save_peft
from safetensors.torch import load_file, save_file
from served_bases import answer, greedy, served_model
from server_process import ServerProcess, command, launch
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

from hotshoe.clients import Client, InvalidArgument
from hotshoe.clients.cli.__main__ import command_line
from hotshoe.server.model.loader import open_base

EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61]  # longer than a window
CONFIGS = {
    "lora": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=EVERY, use_rslora=True),
    "dora": LoraConfig(task_type="CAUSAL_LM", r=3, target_modules=EVERY, use_dora=True),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
    "norms": LNTuningConfig(task_type="CAUSAL_LM"),
    "tokens": TrainableTokensConfig(task_type="CAUSAL_LM", token_indices=[9, 200, 42]),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
}
TEMPLATE = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "gemma2"
    write_tiny_model(directory, "gemma2")
    for path in directory.glob("chat_template.jinja"):
        path.unlink()
    fields = json.loads((directory / "tokenizer_config.json").read_text())
    (directory / "tokenizer_config.json").write_text(json.dumps({**fields, "chat_template": TEMPLATE}))
    return directory


@pytest.fixture(scope="module")
def adapters(gemma: Path, bases: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for name, config in CONFIGS.items():
        save_peft(root / name, gemma_model(gemma, bases), config)
    return {name: root / name for name in CONFIGS}


@pytest.fixture(scope="module")
def server(
    gemma: Path, bases: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    directory = tmp_path_factory.mktemp("server")
    server = launch(directory, command(gemma, directory / "registry", "--base-cache", str(bases)))
    with Client(server.ready["grpc"]) as client:
        for name, path in adapters.items():
            client.publish_directory(path, f"gemma/{name}", tags=["v1"])
    yield server
    server.end()


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server.ready["grpc"]) as client:
        yield client


def gemma_model(gemma: Path, bases: Path) -> PreTrainedModel:
    """`served_model`, whose embedding is scaled as in bfloat16."""
    return with_narrow_scale(served_model(gemma, bases))


def with_narrow_scale(model: PreTrainedModel) -> PreTrainedModel:
    scale = model.get_input_embeddings().embed_scale
    scale.copy_(scale.bfloat16())
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_what_was_published_answers_as_peft_does(
    name: str, client: Client, adapters: dict[str, Path], gemma: Path, bases: Path
) -> None:
    tokens, expected = greedy(PeftModel.from_pretrained(gemma_model(gemma, bases), adapters[name]).eval(), PROMPT)
    ours, found = answer(client, PROMPT, [f"gemma/{name}:v1"])
    assert ours == tokens
    assert found == pytest.approx(expected, abs=1e-4)
    assert found != pytest.approx(answer(client, PROMPT, [])[1], abs=1e-3)  # or the adapter is not to be seen


def test_mixed_in_a_batch_each_gets_what_it_gets_alone(client: Client) -> None:
    stacks = [[f"gemma/{name}:v1"] for name in CONFIGS] + [[("gemma/lora:v1", 0.5), "gemma/norms:v1"], []]
    with ThreadPoolExecutor(len(stacks)) as threads:
        together = [*threads.map(lambda stack: answer(client, PROMPT, stack), stacks)]
    for stack, (tokens, logprobs) in zip(stacks, together, strict=True):
        alone = answer(client, PROMPT, stack)
        assert (tokens, logprobs) == (alone[0], pytest.approx(alone[1], abs=1e-4))


def test_a_chat_whose_template_takes_no_system_says_so(client: Client) -> None:
    user = {"role": "user", "content": "Hello"}
    assert client.generate([user], max_new_tokens=2, ignore_eos=True).completions[0].tokens
    with pytest.raises(InvalidArgument, match="messages: refused by the model's chat template: System role not supp"):
        client.generate([{"role": "system", "content": "Be brief."}, user], max_new_tokens=2)


def test_the_doctor_speaks_of_its_linears(client: Client) -> None:
    found = client.diagnose("gemma/lora:v1", exact=True).diagnosis
    assert {one.target for one in found.linears} == set(EVERY) and len(found.linears) == 14


def test_a_fine_tune_of_a_linear_and_of_norms_is_extracted(
    client: Client, server: ServerProcess, gemma: Path, bases: Path, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "tuned", "gemma2")
    path = tmp_path / "tuned" / "model.safetensors"
    tensors = {name: tensor.bfloat16().float() for name, tensor in load_file(path).items()}
    base = open_base(str(gemma), cache=bases)
    for linear, shape in base.weights.shape.linears.items():
        tensors[f"{shape.module}.weight"] = base.weights.weight(linear).clone()
    tensors["model.layers.1.mlp.up_proj.weight"] += 0.05 * torch.randn(128, 4) @ torch.randn(4, 96)
    norms = {f"model.layers.{layer}.{name}_feedforward_layernorm.weight" for layer, name in ((0, "pre"), (1, "post"))}
    for name in norms:
        tensors[name] += 0.25
    save_file(tensors, path, metadata={"format": "pt"})
    of_base = ("--base", str(gemma), "--base-cache", str(bases))
    where = ("--rank-energy", "0.999", "--as", "gemma/extracted:v1", "--server", server.ready["grpc"], "--json")
    result = CliRunner().invoke(command_line(), ["extract", "--from", str(tmp_path / "tuned"), *of_base, *where])
    assert result.exit_code == 0, (result.output, result.exception)
    report = json.loads(result.output)
    assert [row["linear"] for row in report["linears"] if row["rank"]] == ["layers.1.up_proj"]
    assert set(report["whole"]) == {name.removesuffix(".weight") for name in norms}
    tuned = with_narrow_scale(AutoModelForCausalLM.from_pretrained(tmp_path / "tuned").eval())
    expected, ours = greedy(tuned, PROMPT), answer(client, PROMPT, ["gemma/extracted:v1"])
    assert ours[0] == expected[0] and ours[1] == pytest.approx(expected[1], abs=1e-3)
