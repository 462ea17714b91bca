"""Adapters made from adapters by a running server: what they answer, and what the registry knows of them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_adapters import write_bottleneck
from peft import BeftConfig, LNTuningConfig, LoraConfig, OFTConfig, TrainableTokensConfig
from peft_adapters import save_peft, write_ia3, write_lora, write_prefix, write_prompt
from server_process import ServerProcess
from typer.testing import CliRunner

from hotshoe.clients import Client, InvalidArgument
from hotshoe.clients.cli.__main__ import command_line

PROMPT = [5, 9, 77, 30, 2]
EVERY = ("q_proj", "v_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def parents(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from peft_kinds import CONFIGS
    from transformers import AutoModelForCausalLM

    made = {}
    root, model = tmp_path_factory.mktemp("parents"), AutoModelForCausalLM.from_pretrained(tiny_base)
    for name, rank in (("dora", 3), ("other-dora", 5)):
        config = LoraConfig(task_type="CAUSAL_LM", r=rank, use_dora=True, target_modules=list(EVERY))
        save_peft(root / name, AutoModelForCausalLM.from_pretrained(tiny_base), config, seed=rank)
    for seed, (name, kind) in enumerate(
        {
            "biases": BeftConfig(target_modules=["q_proj", "down_proj"]),
            "norms": LNTuningConfig(target_modules=["input_layernorm"]),
            "more-norms": LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"]),
            "tokens": TrainableTokensConfig(token_indices=PROMPT[:2]),
            "more-tokens": TrainableTokensConfig(token_indices=PROMPT[2:4]),
            "poly": CONFIGS["poly"](),
            "prompts": CONFIGS["multitask prompt"](),
            "embeddings": LoraConfig(r=3, target_modules=["embed_tokens", "lm_head", "q_proj"]),
            "rotations": OFTConfig(target_modules=["q_proj", "v_proj"], oft_block_size=8, r=0),
        }.items()
    ):
        save_peft(root / name, AutoModelForCausalLM.from_pretrained(tiny_base), kind, seed=seed)
        made[name] = root / name
    return made | {
        "dora": root / "dora",
        "other-dora": root / "other-dora",
        "first": write_lora(root / "first", model, rank=4, seed=1, targets=EVERY),
        "second": write_lora(root / "second", model, rank=6, seed=2, targets=EVERY[1:]),
        "scales": write_ia3(root / "scales", model),
        "more-scales": write_ia3(root / "more-scales", model, seed=2, targets=("q_proj", "v_proj", "down_proj")),
        "prefix": write_prefix(root / "prefix", model, tokens=3),
        "longer-prefix": write_prefix(root / "longer-prefix", model, tokens=5, seed=2),
        "prompt": write_prompt(root / "prompt", model, tokens=3),
        "longer-prompt": write_prompt(root / "longer-prompt", model, tokens=5, seed=2),
        "networks": write_bottleneck(root / "networks", model, seed=1),
        "narrow-networks": write_bottleneck(root / "narrow-networks", model, width=2, seed=2, mh_adapter=False),
    }


@pytest.fixture
def client(server: ServerProcess, parents: dict[str, Path]) -> Iterator[Client]:
    with Client(server.ready["grpc"]) as client:
        for name, directory in parents.items():
            client.publish_directory(directory, f"merging/{name}")
        yield client


def logprobs(client: Client, adapters: object) -> list[float]:
    """Of the prompt's tokens."""
    answer = client.generate(PROMPT, adapters=adapters, max_new_tokens=1, prompt_logprobs=0)  # type: ignore[arg-type]
    return [token.logprob for token in answer.prompt_tokens[1:]]


def test_a_merged_adapter_answers_as_its_parents_stacked(client: Client) -> None:
    sources = [("merging/first", 0.7), ("merging/second", -0.4)]
    merged = client.merge_adapters(sources, "merging/both", tags=["v1"])
    assert merged.energy_kept == 1.0 and merged.adapter.rank == 10 and merged.adapter.kind == "LORA"
    assert logprobs(client, "merging/both:v1") == pytest.approx(logprobs(client, sources), abs=1e-4)
    assert logprobs(client, "merging/both:v1") != pytest.approx(logprobs(client, "merging/first"), abs=1e-2)


@pytest.mark.parametrize(
    "weighted, method, kind",
    [
        ([("scales", 0.7), ("more-scales", -0.4)], "linear", "IA3"),
        ([("dora", 0.7), ("other-dora", -0.4), ("first", 0.5)], "linear", "LORA"),
        ([("biases", 0.7), ("first", 0.5)], "linear", "LORA"),
        ([("norms", 0.7), ("more-norms", 0.5)], "linear", "LN_TUNING"),
        ([("tokens", 0.7), ("more-tokens", 0.5)], "linear", "TRAINABLE_TOKENS"),
        ([("tokens", 0.7), ("biases", 0.5), ("second", 0.5), ("norms", -0.5)], "linear", "LORA"),
        ([("prefix", 1.0), ("longer-prefix", 1.0)], "cat", "PREFIX_TUNING"),
        ([("longer-prompt", 1.0), ("prompt", 1.0)], "cat", "PROMPT_TUNING"),
        ([("networks", 0.7), ("narrow-networks", -0.5)], "linear", "BOTTLENECK"),
    ],
)
def test_every_sort_of_adapter_answers_as_its_stack_and_is_known_by_its_recipe(
    client: Client, weighted: list[tuple[str, float]], method: str, kind: str
) -> None:
    sources = [(f"merging/{parent}", weight) for parent, weight in weighted]
    name = f"merging/{weighted[0][0]}-and-more"
    merged, again = (client.merge_adapters(sources, name, method=method) for _ in range(2))
    assert merged.adapter.kind == kind and merged.adapter.digest == again.adapter.digest
    assert [parent.weight for parent in merged.adapter.parents] == [weight for _, weight in sources]
    assert json.loads(merged.adapter.recipe)["method"] == method
    stacked = logprobs(client, sources)
    assert logprobs(client, name) == pytest.approx(stacked, abs=1e-4)
    for one, _ in sources:
        assert stacked != pytest.approx(logprobs(client, one), abs=1e-2)


@pytest.mark.parametrize(
    "sources, method, tasks",
    [
        ([("merging/poly", 0.7, 2), ("merging/first", 0.5, None), ("merging/poly", -0.3, 0)], "linear", [2, None, 0]),
        ([("merging/prompts", 1.0, 1), ("merging/prompt", 1.0, None)], "cat", [1, None]),
        ([("merging/embeddings", 0.7, None), ("merging/poly", 1.0, 1)], "linear", [None, 1]),
    ],
)
def test_one_task_of_an_adapter_merges_as_it_stacks(
    client: Client, sources: list[tuple[str, float, int | None]], method: str, tasks: list[int | None]
) -> None:
    merged = client.merge_adapters(sources, "merging/of-tasks", method=method)
    assert json.loads(merged.adapter.recipe)["tasks"] == tasks and merged.adapter.num_tasks == 0
    assert logprobs(client, "merging/of-tasks") == pytest.approx(logprobs(client, sources), abs=1e-4)
    assert logprobs(client, "merging/of-tasks") != pytest.approx(logprobs(client, []), abs=1e-3)


def test_rotations_are_cut_to_the_rank_that_is_asked_for_and_the_manifest_says_what_it_keeps(client: Client) -> None:
    sources = [("merging/rotations", 0.7), ("merging/first", 0.5)]
    whole = client.merge_adapters(sources, "merging/turned", method="svd", parameters={"rank": 64})
    assert whole.adapter.kind == "LORA" and whole.energy_kept == pytest.approx(1.0)
    assert logprobs(client, "merging/turned") == pytest.approx(logprobs(client, sources), abs=1e-3)
    cut = client.merge_adapters(sources, "merging/turned", method="svd", parameters={"rank": 4})
    assert cut.adapter.rank == 4 and 0.1 < cut.energy_kept < 0.95
    assert json.loads(cut.adapter.recipe)["energy_kept"] == round(cut.energy_kept, 6)


def test_the_order_of_prompts_is_that_of_the_sources(client: Client) -> None:
    names = ["merging/prompt", "merging/longer-prompt"]
    for name, sources in (("one-way", names), ("other-way", names[::-1])):
        client.merge_adapters(sources, f"merging/{name}", method="cat")
    one, other = (logprobs(client, f"merging/{name}") for name in ("one-way", "other-way"))
    assert one != pytest.approx(other, abs=1e-2)


def test_a_weight_of_zero_is_a_zero_and_none_is_one(client: Client) -> None:
    merged = client.merge_adapters([("merging/first", 0.0), "merging/second"], "merging/nothing-of-the-first")
    assert [parent.weight for parent in merged.adapter.parents] == [0.0, 1.0]
    assert logprobs(client, "merging/nothing-of-the-first") == pytest.approx(
        logprobs(client, "merging/second"), abs=1e-4
    )


def test_the_manifest_names_parents_and_recipe_and_the_same_recipe_gives_the_same_digest(client: Client) -> None:
    options = {"method": "ties", "parameters": {"density": 0.4, "rank": 3, "seed": 7}}
    first, again = (
        client.merge_adapters(["merging/first", ("merging/second", 0.5)], name, **options)  # type: ignore[arg-type]
        for name in ("merging/ties", "merging/ties-again")
    )
    assert first.adapter.digest == again.adapter.digest
    assert 0.1 < first.energy_kept < 1.0
    recipe = json.loads(first.adapter.recipe)
    assert recipe == {
        "op": "merge",
        "method": "ties",
        "density": 0.4,
        "normalize": True,
        "rank": 3,
        "seed": 7,
        "energy_kept": round(first.energy_kept, 6),
    }
    digests = [client.get_adapter(f"merging/{name}").digest for name in ("first", "second")]
    assert [(parent.digest, parent.weight) for parent in first.adapter.parents] == [
        (digests[0], 1.0),
        (digests[1], 0.5),
    ]
    other = client.merge_adapters(["merging/first", "merging/second"], "merging/other", **options)  # type: ignore[arg-type]
    assert other.adapter.digest != first.adapter.digest


def test_a_sweep_is_only_other_weights_on_the_same_stack(client: Client) -> None:
    for t in (0.0, 0.25, 0.5, 0.75, 1.0):
        merged = client.merge_adapters(
            [("merging/first", 1 - t), ("merging/second", t)], "merging/sweep", tags=[f"t{t}"]
        )
        stack = [("merging/first", 1 - t), ("merging/second", t)]
        assert logprobs(client, f"merging/sweep@{merged.adapter.digest}") == pytest.approx(
            logprobs(client, stack), abs=1e-4
        )


@pytest.mark.parametrize(
    "sources, options, field",
    [
        (["merging/first", "merging/second"], {"method": "stir"}, "method"),
        (["merging/first", "merging/second"], {"parameters": {"t": 0.5}}, "parameters.t"),
        (["merging/first"], {}, "sources"),
        (["merging/first", ("merging/second", 0.5)], {"method": "slerp"}, "sources.weight"),
        (["merging/prefix", "merging/longer-prefix"], {}, "method"),
        (["merging/prompt", ("merging/longer-prompt", 0.5)], {"method": "cat"}, "sources.weight"),
        (["merging/prompt", "merging/prefix"], {"method": "cat"}, "sources"),
        (["merging/first", "merging/rotations"], {}, "expected svd for updates of full rank"),
        (["merging/biases", "merging/dora"], {}, "add a bias to layers.0.q_proj"),
        (["merging/tokens", ("merging/tokens", 0.5)], {"method": "ties"}, "method"),
        (["merging/prefix", "merging/scales"], {}, "PREFIX_TUNING of prefixes, IA3 of scales"),
        (["merging/first", "merging/poly"], {}, "sources[1].task: missing, expected a task from 0 to 2"),
        ([("merging/first", 1.0, 0), "merging/second"], {}, "sources[0].task: found 0, expected none"),
    ],
)
def test_a_merge_that_makes_no_sense_is_refused_by_the_name_of_its_field(
    client: Client, sources: list[object], options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        client.merge_adapters(sources, "merging/none", **options)  # type: ignore[arg-type]
    assert field in str(refusal.value)
    assert not [adapter for adapter in client.list_adapters(name_contains="merging/none")]


def test_the_command_line_merges_and_shows_where_an_adapter_comes_from(client: Client, server: ServerProcess) -> None:
    def hotshoe(*arguments: str) -> str:
        result = CliRunner().invoke(command_line(), [*arguments, "--server", server.ready["grpc"]])
        assert result.exit_code == 0, result.output
        return result.output

    made = hotshoe(
        *("merge", "merging/first", "merging/second", "--as", "merging/arc:v1", "--method", "slerp"),
        *("--param", "t=0.3", "--param", "rank=5"),
    )
    assert "rank 5" in made and "% of the merge kept" in made
    hotshoe(*("merge", "merging/poly#2=0.5", "merging/first", "--as", "merging/of-tasks"))
    assert '"tasks":[2,null]' in hotshoe("show", "merging/of-tasks")
    joined = hotshoe(*("merge", "merging/prefix", "merging/longer-prefix", "--as", "merging/joined", "--method", "cat"))
    assert "PREFIX_TUNING, " in joined and "rank" not in joined
    shown = hotshoe("show", "merging/arc:v1")
    assert shown.count("\nparent ") == 2 and '"method":"slerp"' in shown and '"t":0.3' in shown
    assert "energy_kept" in shown
