"""Adapters that have tasks, through a real server: each request gets its own task, and each task lies by itself."""

import asyncio
import itertools
from pathlib import Path

import grpc
import numpy
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from model_directories import tiny_model
from peft_adapters import save_peft, write_lora
from peft_kinds import CONFIGS
from server_process import ServerProcess, publish

from hotshoe.clients import AdapterSelection, AsyncClient, Client, InvalidArgument
from hotshoe.protos.v1 import generation_pb2

NAMES = {"tasks/poly": "poly", "tasks/prompts": "multitask prompt"}
BAD_REQUEST = error_details_pb2.BadRequest.DESCRIPTOR
PROMPT = "a prompt that is long enough to fill some pages of the cache, and then some more of them"


@pytest.fixture(scope="module")
def served(server: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a server that has two adapters of three tasks each, and one of none."""
    directory: Path = tmp_path_factory.mktemp("adapters")
    for reference, name in NAMES.items():
        save_peft(directory / name, tiny_model(), CONFIGS[name]())
        publish(server, reference, directory / name)
    publish(server, "tasks/plain", write_lora(directory / "plain", tiny_model(), seed=31))
    return server.ready["grpc"]


def test_tasks_in_one_batch_get_what_each_gets_alone(served: str) -> None:
    stacks = [[AdapterSelection(name, task=task)] for name in NAMES for task in range(3)]
    stacks += [["tasks/plain"], [], [AdapterSelection("tasks/poly", 0.5, 1), AdapterSelection("tasks/prompts", task=2)]]
    stacks.append([("tasks/poly", 1.0, 0), ("tasks/poly", 1.0, 2)])
    together, alone = asyncio.run(_together_and_alone(served, stacks))
    assert numpy.allclose(together, alone, rtol=0, atol=1e-4)  # bits differ with what shares a step
    assert all(not numpy.allclose(*two, rtol=0, atol=1e-3) for two in itertools.combinations(together, 2))


async def _together_and_alone(address: str, stacks: list[list[object]]) -> tuple[list[list[float]], list[list[float]]]:
    async with AsyncClient(address) as client:

        async def ask(stack: list[object]) -> list[float]:
            answer = await client.generate(PROMPT, adapters=stack, max_new_tokens=8, logprobs=0, ignore_eos=True)
            assert [a.task for a in answer.adapters if a.HasField("task")] == [
                one.task if isinstance(one, AdapterSelection) else one[2] for one in stack if not isinstance(one, str)
            ]
            return [token.logprob for token in answer.completions[0].tokens]

        return await asyncio.gather(*map(ask, stacks)), [await ask(stack) for stack in stacks]


def test_score_names_a_task_too(served: str) -> None:
    with Client(served) as client:
        scored = [
            client.score(PROMPT, [" yes", " no"], adapters=AdapterSelection("tasks/prompts", task=task))
            for task in range(3)
        ]
    assert [answer.adapters[0].task for answer in scored] == [0, 1, 2]
    assert len({answer.choices[0].logprob for answer in scored}) == 3


@pytest.mark.parametrize(
    ("selection", "problem"),
    [
        ({"reference": "tasks/poly"}, "missing, expected a task from 0 to 2: the adapter has 3"),
        ({"reference": "tasks/prompts", "task": 3}, "found 3, expected a task from 0 to 2: the adapter has 3"),
        ({"reference": "tasks/plain", "task": 0}, "found 0, expected none: the adapter has no tasks"),
    ],
)
def test_a_request_without_its_task_is_refused_by_the_field_s_name(
    server: ServerProcess, served: str, selection: dict[str, object], problem: str
) -> None:
    request = generation_pb2.GenerateRequest(text="hi", adapters=[selection])
    with pytest.raises(grpc.RpcError) as caught:
        server.generation.Generate(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    details = [detail for detail in rpc_status.from_call(caught.value).details if detail.Is(BAD_REQUEST)]
    violation = error_details_pb2.BadRequest.FromString(details[0].value).field_violations[0]
    assert (violation.field, violation.description) == ("adapters[0].task", problem)


def test_each_task_is_loaded_pinned_and_unloaded_by_itself(served: str) -> None:
    with Client(served) as client:
        client.unload("tasks/poly")
        assert client.load("tasks/poly", task=1, pin=True).task == 1
        client.load("tasks/poly", task=2)
        with pytest.raises(InvalidArgument, match="expected a task from 0 to 2"):
            client.load("tasks/poly")

        def residents() -> set[tuple[int, bool]]:
            return {(one.task, one.pinned) for one in client.list_resident() if one.name == "tasks/poly"}

        assert residents() == {(1, True), (2, False)}
        client.unload("tasks/poly", task=2)
        assert residents() == {(1, True)}
        client.load("tasks/poly", task=0)
        client.unload("tasks/poly")  # all of them
        assert residents() == set()


def test_the_registry_tells_how_many_tasks_there_are(served: str) -> None:
    with Client(served) as client:
        adapters = [client.get_adapter(name) for name in (*NAMES, "tasks/plain")]
    assert [adapter.num_tasks for adapter in adapters] == [3, 3, 0]
    assert [adapter.annotations.get("dev.hotshoe.adapter.tasks") for adapter in adapters] == ["3", "3", None]


def test_what_is_of_one_update_only_refuses_an_adapter_that_has_several(served: str) -> None:
    problem = "task: found none, expected one from 0 to 2: each of its tasks is an adapter of its own"
    with Client(served) as client:
        with pytest.raises(InvalidArgument, match=problem):
            client.compare_adapters("tasks/poly", "tasks/plain")
        with pytest.raises(InvalidArgument, match=r"sources\[0\]\.task: missing, expected a task from 0 to 2"):
            client.merge_adapters([("tasks/poly", 1.0), ("tasks/plain", 1.0)], "tasks/merged", method="linear")


def test_the_doctor_tells_of_the_worst_task(served: str) -> None:
    with Client(served) as client:
        found = client.diagnose("tasks/poly", exact=True).diagnosis
        prompts = client.diagnose("tasks/prompts").diagnosis
    assert "the worst: " in found.headline and len(found.linears) > 0
    assert found.headline.startswith("task ")
    assert prompts.headline == "it changes no linear: there is nothing to examine"
