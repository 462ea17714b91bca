"""Every kind of adapter on an NF4 base, through a server: PEFT's log probabilities on the same dequantized weights."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from engine_logprobs import logprobs_by_canonical_form
from hub_adapters import write_bottleneck
from peft import PeftModel
from peft_adapters import adapter_files, save_peft
from peft_kinds import CONFIGS, DENSE_CONFIGS, one_of_each_kind, tasks_of
from served_bases import served_model
from server_process import ServerProcess, command, launch

from hotshoe.clients import AdapterSelection, Client
from hotshoe.registry.formats.kind import ADAPTER_KINDS, ADAPTERHUB_KINDS, DENSE_KINDS
from hotshoe.registry.formats.lowering import lower_adapter
from hotshoe.server.model.loader import open_base

PROMPT = [5, 9, 200, 31, 7, 88, 42, 3, 19, 250, 61]
FULL_RANK = 128  # at which what is approximated is not
VARIANTS = {
    name: CONFIGS[name]()
    for name in ("dora", "rank-stabilized dora with patterns", "mica", "bd-lora", "kasa", "pissa", "olora")
    + ("lora on the embedding", "lora on the output head", "lora on parameters", "glora of matrices")
}
EVERY = {**one_of_each_kind(), **one_of_each_kind(DENSE_CONFIGS), **VARIANTS}


@pytest.fixture(scope="module")
def server(tiny_base: Path, bases: Path, tmp_path_factory: pytest.TempPathFactory):
    directory = tmp_path_factory.mktemp("server")
    server = launch(directory, command(tiny_base, directory / "registry", "--base-cache", str(bases)))
    yield server
    server.end()


@torch.no_grad()
def logprobs(model: torch.nn.Module, task: int | None = None) -> list[float]:
    """Of the prompt's tokens but the first."""
    chosen = {} if task is None else {"task_ids": torch.tensor([task])}
    logits = model(input_ids=torch.tensor([PROMPT]), **chosen).logits[0, -len(PROMPT) :]
    chosen = logits.log_softmax(-1)[torch.arange(len(PROMPT) - 1), torch.tensor(PROMPT[1:])]
    return chosen.tolist()


def answered(client: Client, adapters: list[AdapterSelection]) -> list[float]:
    answer = client.generate(PROMPT, adapters=adapters, max_new_tokens=1, prompt_logprobs=0)
    return [token.logprob for token in answer.prompt_tokens[1:]]


@pytest.mark.parametrize("name", EVERY)
def test_the_server_gives_pefts_log_probabilities(
    name: str, server: ServerProcess, tiny_base: Path, bases: Path, tmp_path: Path
) -> None:
    config = EVERY[name]
    *_, task = tasks_of(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save_peft(tmp_path, served_model(tiny_base, bases), config)
        theirs = logprobs(PeftModel.from_pretrained(served_model(tiny_base, bases), tmp_path).eval(), task)
    rank = FULL_RANK if config.peft_type.value in DENSE_KINDS else 0
    reference = name.lower().replace(" ", "-").replace("_", "-")
    with Client(server.ready["grpc"]) as client:
        client.publish_directory(tmp_path, reference, approximate_rank=rank)
        ours = answered(client, [AdapterSelection(reference, task=task)])
        bare = answered(client, [])
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert ours != pytest.approx(bare, abs=1e-2)  # or the adapter is not to be seen
    assert bare == pytest.approx(logprobs(served_model(tiny_base, bases)), abs=1e-4)


# In the fields of AdapterHub's package; its networks read nothing of the base, so a canonical form is an oracle here.
BOTTLENECKS: Mapping[str, Mapping[str, object]] = {
    "houlsby": {},
    "pfeiffer": {"mh_adapter": False, "original_ln_before": True, "non_linearity": "relu"},
    "parallel": {"mh_adapter": False, "is_parallel": True, "scaling": 4.0, "non_linearity": "gelu"},
}


@pytest.mark.parametrize("name", BOTTLENECKS)
def test_the_server_gives_bottlenecks_their_log_probabilities(
    name: str, server: ServerProcess, tiny_base: Path, bases: Path, tmp_path: Path
) -> None:
    model = served_model(tiny_base, bases)
    write_bottleneck(tmp_path / name, model, **BOTTLENECKS[name])
    lowered = lower_adapter(adapter_files(tmp_path / name), open_base(str(tiny_base), cache=bases).weights)
    with Client(server.ready["grpc"]) as client:
        published = client.publish_directory(tmp_path / name, name).adapter
        ours, bare = answered(client, [name]), answered(client, [])
        client.pull(name, tmp_path / "pulled")
    assert published.kind == lowered.kind
    assert ours == pytest.approx(logprobs_by_canonical_form(model, lowered, PROMPT).tolist(), abs=1e-4)
    assert ours != pytest.approx(bare, abs=1e-2)
    for file_name, path in adapter_files(tmp_path / name).items():
        assert (tmp_path / "pulled" / file_name).read_bytes() == path.read_bytes()


def test_no_kind_is_left_out() -> None:
    assert {config.peft_type.value for config in EVERY.values()} == ADAPTER_KINDS.keys() | DENSE_KINDS.keys()
    assert ADAPTERHUB_KINDS.keys() == {"BOTTLENECK"}
